"""The page stands alone, tells everything, and no text of a study can become markup or script."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.report import PictureRow, ReportData, write_report
from qua2sedimo.report.page.html import render_page

from .synthetic import synthetic_data

EVIL = "<script>document.title='broken'</script></script><img src=x onerror=alert(1)>\"'{{ 7*7 }}"


class Tags(HTMLParser):
    """The elements of a page and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] and self.tags[-1][0] not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def data() -> ReportData:
    return synthetic_data(blocks=3, records=30)


@pytest.fixture(scope="module")
def page(data: ReportData) -> str:
    return render_page(data)


def test_the_file_is_written_whole_and_small(data: ReportData, tmp_path: Path) -> None:
    out = write_report(data, tmp_path / "new" / "report.html")
    assert out.stat().st_size < 2_000_000
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written_is_named(data: ReportData, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Qua2SeDiMoError, match=r"cannot write .*report\.html"):
        write_report(data, tmp_path / "file" / "report.html")


def test_nothing_is_fetched(page: str) -> None:
    tags = Tags(page).tags
    assert not [tag for tag, _ in tags if tag in ("link", "iframe", "object", "embed", "base")]
    for _, attributes in tags:
        for name in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("data:image/", "#"))
    styles = "".join(re.findall(r"<style>(.*?)</style>", page, re.S))
    assert "url(" not in styles and "@import" not in styles
    policy = next(a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'") and "http" not in policy


def test_every_section_is_there_with_its_figures(page: str, data: ReportData) -> None:
    parsed = Tags(page)
    sections = [attributes.get("id") for tag, attributes in parsed.tags if tag == "section"]
    assert sections == [
        "comparison",
        "pictures",
        "quality",
        "sensitivity",
        "layers",
        "graph",
        "predictor",
        "provenance",
    ]
    charts = [a["data-chart"] for _, a in parsed.tags if "data-chart" in a]
    assert sorted(charts) == sorted(specifications(page)) and len(charts) == 9
    for text in (
        "3.49 bits per weight",
        "4.6 times smaller",
        "27.1 dB (26.3 to 28.0)",
        *data.findings,
        "torch 2.9",
    ):
        assert text in parsed.text
    for choice in data.choices:
        assert choice.layer in parsed.text


def test_pictures_have_alternative_texts(page: str, data: ReportData) -> None:
    pictures = [attributes for tag, attributes in Tags(page).tags if tag == "img" and "src" in attributes]
    assert len(pictures) == len(data.pictures) * len(data.captions)
    assert {picture["class"] for picture in pictures} == {"tiny"}
    assert pictures[0]["alt"] == f"full precision: {data.captions[0]}"


def test_charts_have_alternative_texts(page: str) -> None:
    assert all(len(chart["description"]) > 30 for chart in specifications(page).values())


def test_texts_of_a_study_cannot_break_out(page: str) -> None:
    harmless, evil = Tags(page), Tags(render_page(synthetic_data(blocks=3, records=30, evil=EVIL)))
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in harmless.tags]
    assert not [name for _, attributes in evil.tags for name in attributes if name.startswith("on")]
    assert EVIL in evil.text


def test_the_best_and_the_not_clearly_different_are_marked(page: str) -> None:
    marks = re.findall(r'<td class="n (best|close)">([\d.]+)', page)
    assert ("best", "29.8") in marks and ("close", "0.394") in marks
    assert ("close", "27.1") not in marks


def test_a_study_without_scores_pictures_or_predictor_still_has_a_page(data: ReportData) -> None:
    bare = dataclasses.replace(
        data,
        pictures=[],
        captions=[],
        points=[],
        options=[],
        steps=[],
        choices=[],
        predictor=None,
        findings=[],
        nodes=[],
        provenance={},
        expected=[],
    )
    page = render_page(bare)
    assert [a.get("id") for tag, a in Tags(page).tags if tag == "section"] == ["comparison", "provenance"]
    assert specifications(page) == {}


def test_large_pictures_are_scaled_down(data: ReportData) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (400, 600, 3)).astype(np.uint8)
    rows = [PictureRow(name, [noise, noise]) for name in ("full precision", "ours")]
    page = render_page(dataclasses.replace(data, pictures=rows, captions=["a", "b"]))
    assert len(page) < 6_000_000 and "data:image/webp" in page


def test_parts_that_do_not_fit_are_refused(data: ReportData) -> None:
    with pytest.raises(Qua2SeDiMoError, match="one for each of the 1 captions, got 8"):
        dataclasses.replace(data, captions=["only one"])
    wrong = PictureRow("ours", [np.zeros((4, 4, 3))])
    with pytest.raises(Qua2SeDiMoError, match="'ours': expected uint8"):
        render_page(dataclasses.replace(data, pictures=[wrong], captions=["a"]))


def specifications(page: str) -> dict[str, dict]:
    found = re.search(r'<script type="application/json" id="specifications">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])
