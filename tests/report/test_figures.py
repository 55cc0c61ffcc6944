"""Figures as files: every one opens, holds what it must say, has the size papers print, and two studies share one."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.report import MetricInfo, PictureRow, ReportData, write_figures, write_two_studies
from qua2sedimo.report.charts.figures import all_figures
from qua2sedimo.report.paper.style import COLUMN, PAGE
from qua2sedimo.report.text import escaped

from .synthetic import synthetic_data

EVIL = "<script>alert(1)</script>&\"'\\"
ALL = [
    "pictures", "quality-against-bits", "sensitivity-map", "chosen-options", "sensitivity-by-operation",
    "sensitivity-by-block", "damage-by-step", "options-by-operation", "predictor-quality", "predicted-against-measured",
]  # fmt: skip
COMPARED = ["quality-against-bits", "sensitivity-by-operation", "sensitivity-by-block", "options-by-operation"]


@pytest.fixture(scope="module")
def data() -> ReportData:
    return synthetic_data(blocks=3, records=20, evil=EVIL)


def texts(path: Path) -> list[str]:
    """What is written in an SVG, which is parsed for it."""
    assert not [e for e in ElementTree.parse(path).iter() if e.tag.endswith("script")]
    return [e.text or "" for e in ElementTree.parse(path).iter() if e.tag.endswith("text")]


def points(path: Path) -> float:
    """The width of a PDF's page."""
    found = re.search(rb"/MediaBox \[0 0 ([\d.]+) [\d.]+\]", path.read_bytes())
    assert found is not None
    return float(found[1])


def test_every_figure_is_an_svg_that_says_what_its_axes_and_marks_are(data: ReportData, tmp_path: Path) -> None:
    paths = write_figures(data, tmp_path / "figures")
    assert [path.name for path in paths] == [*(f"{name}.svg" for name in ALL), "captions.md"]
    assert [figure.name for figure in all_figures(data)] == ALL
    said = {path.stem: texts(path) for path in paths[:-1]}
    assert f"ours{EVIL}" in said["quality-against-bits"] and f"uaq-4{EVIL}" in said["quality-against-bits"]
    for name in ("sensitivity-map", "sensitivity-by-block"):
        assert {"input", "block 0", "block 1", "block 2", "output"} <= set(said[name])
    assert {"AdaLN", "SA-V", "dB lost from 4 to 3 bits"} <= set(said["sensitivity-by-operation"])
    assert {"uaq-4", "U4", "FF 2"} <= set(said["options-by-operation"])
    quality = paths[1].read_text()
    assert "currentColor" not in quality and 'width="240.00pt"' in quality


def test_every_figure_is_a_pdf_as_wide_as_a_column_with_its_letters_in_it(data: ReportData, tmp_path: Path) -> None:
    paths = write_figures(data, tmp_path, "pdf")
    for path in paths[:-1]:
        assert path.read_bytes().startswith(b"%PDF-") and b"FontFile2" in path.read_bytes()
        assert points(path) == pytest.approx(PAGE if path.stem == "pictures" else COLUMN, abs=1)


def test_every_figure_is_a_png_of_300_dots_an_inch_on_white(data: ReportData, tmp_path: Path) -> None:
    paths = write_figures(data, tmp_path, "png")
    for path in paths[:-1]:
        with Image.open(io.BytesIO(path.read_bytes())) as picture:
            wide = PAGE if path.stem == "pictures" else COLUMN
            assert picture.width == pytest.approx(wide * 300 / 72, abs=4)
            assert round(picture.info["dpi"][0]) == 300
            pixels = np.asarray(picture.convert("L"))
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border == 255).all(), f"{path.name} is cut off"
        assert (pixels < 128).mean() > 0.002


def test_many_blocks_take_the_width_of_a_page(tmp_path: Path) -> None:
    many = dataclasses.replace(synthetic_data(blocks=40, records=5), predictor=None)
    found = {path.stem: path for path in write_figures(many, tmp_path, "pdf")[:-1]}
    assert points(found["sensitivity-map"]) == pytest.approx(PAGE, abs=1)
    assert points(found["quality-against-bits"]) == pytest.approx(COLUMN, abs=1)


def test_what_a_study_has_not_is_not_drawn(tmp_path: Path) -> None:
    bare = synthetic_data(blocks=2, records=5)
    some = dataclasses.replace(bare, options=[], steps=[], predictor=None, pictures=bare.pictures[:1])
    paths = write_figures(some, tmp_path)
    assert [path.stem for path in paths] == [
        "quality-against-bits", "chosen-options", "damage-by-step", "options-by-operation", "captions"
    ]  # fmt: skip
    none = dataclasses.replace(some, points=[], choices=[], pictures=[], captions=[], expected=[])
    with pytest.raises(Qua2SeDiMoError, match="nothing to draw"):
        write_figures(none, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def embedded(path: Path) -> list[Image.Image]:
    """The pictures in an SVG, all of them PNGs."""
    found = re.findall(r'xlink:href="data:image/png;base64,([^"]+)"', path.read_text())
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in found]


def test_the_picture_grid_has_the_pixels_of_every_model_and_the_whole_prompts_in_its_caption(
    data: ReportData, tmp_path: Path
) -> None:
    paths = {path.stem: path for path in write_figures(data, tmp_path)}
    made = [image for row in data.pictures for image in row.images]
    shown = embedded(paths["pictures"])
    assert len(shown) == len(made) == 32
    for picture, image in zip(shown, made):
        assert picture.width > 200 and picture.width % 16 == 0  # enlarged, every pixel by as much
        assert (np.asarray(picture)[:: picture.height // 16, :: picture.width // 16] == image).all()
    said = " ".join(
        " ".join(e.itertext()) for e in ElementTree.parse(paths["pictures"]).iter() if e.tag.endswith("text")
    )
    assert "full precision" in said and "3.49 bits" in said and "…" in said
    for caption in data.captions:
        assert escaped(caption) in paths["captions"].read_text()


def test_few_pictures_fit_into_a_column_and_of_many_the_first_are_shown(data: ReportData, tmp_path: Path) -> None:
    def with_pictures(times: int, upto: int) -> ReportData:
        rows = [PictureRow(row.name, (row.images * times)[:upto]) for row in data.pictures[:2]]
        return dataclasses.replace(data, pictures=rows, captions=(data.captions * times)[:upto])

    few = {path.stem: path for path in write_figures(with_pictures(1, 3), tmp_path / "few", "pdf")}
    assert points(few["pictures"]) == pytest.approx(COLUMN, abs=1)
    many = {path.stem: path for path in write_figures(with_pictures(2, 12), tmp_path / "many")}
    assert len(embedded(many["pictures"])) == 2 * 8
    assert "The first 8 of 12 pictures" in many["captions"].read_text()


def test_large_pictures_are_scaled_down_and_keep_their_shape(data: ReportData, tmp_path: Path) -> None:
    large = np.zeros((512, 1024, 3), np.uint8)
    rows = [PictureRow(row.name, [large] * len(data.captions)) for row in data.pictures]
    path = write_figures(dataclasses.replace(data, pictures=rows), tmp_path)[0]
    assert {picture.size for picture in embedded(path)} == {(384, 192)}
    drawn = {(float(e.get("width", 0)), float(e.get("height", 0))) for e in ElementTree.parse(path).iter()
             if e.tag.endswith("image")}  # fmt: skip
    assert all(width == pytest.approx(2 * height) for width, height in drawn)


def test_captions_have_numbers_and_how_they_were_made_and_no_markup_of_the_study(
    data: ReportData, tmp_path: Path
) -> None:
    text = write_figures(data, tmp_path, made_by=["qua2sedimo figures study"])[-1].read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == ALL
    for said in ("20 random", "AdaLN 1.8", "    qua2sedimo figures study", "torch 2.9", "128 configurations"):
        assert said in text
    prose = [line for line in text.splitlines() if not line.startswith("    qua2sedimo ")]
    assert "<script" not in "\n".join(prose).replace("\\<", "")
    assert escaped("a\n# <b>*x*</b> | [y](z)") == r"a \# \<b\>\*x\*\</b\> \| \[y\](z)"


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Qua2SeDiMoError, match="'gif': expected svg, png or pdf"):
        write_figures(synthetic_data(blocks=1), tmp_path, "gif")


@pytest.mark.parametrize("form", ["svg", "png", "pdf"])
def test_two_studies_share_every_figure(data: ReportData, tmp_path: Path, form: str) -> None:
    other = synthetic_data(blocks=2, records=10)
    paths = write_two_studies({f"first {EVIL}": data, "second": other}, tmp_path, form)
    assert [path.stem for path in paths] == [*COMPARED, "captions"]
    if form == "svg":
        for path in paths[:-1]:
            assert {f"first {EVIL}", "second"} <= set(texts(path)), path.name
    if form == "pdf":
        widths = [points(path) for path in paths[:-1]]
        assert widths == [pytest.approx(w, abs=1) for w in (COLUMN, COLUMN, widths[2], widths[3])]
        assert PAGE * 0.9 < min(widths[2:]) <= max(widths[2:]) <= PAGE + 1
    assert "second: 22 measured" in paths[-1].read_text()


def test_studies_without_a_common_axis_are_refused(data: ReportData, tmp_path: Path) -> None:
    other = dataclasses.replace(data, objective=MetricInfo("features", "feature distance"))
    with pytest.raises(Qua2SeDiMoError, match="'a' measures psnr, 'b' measures features"):
        write_two_studies({"a": data, "b": other}, tmp_path)
    with pytest.raises(Qua2SeDiMoError, match="in dB, those of 'b' in score"):
        write_two_studies({"a": data, "b": dataclasses.replace(data, cost_unit="score")}, tmp_path)
    with pytest.raises(Qua2SeDiMoError, match="two studies"):
        write_two_studies({"a": data}, tmp_path)
    assert list(tmp_path.iterdir()) == []
