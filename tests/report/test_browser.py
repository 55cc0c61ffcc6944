"""The page in a real browser, as a reader uses it: nothing goes wrong, and everything that can be pressed works."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qua2sedimo.report import ReportData, write_report

from .synthetic import synthetic_data
from .test_odd_text import ODD
from .test_page import EVIL

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update"]  # fmt: skip
BLOCKS, CHARTS = 4, 9

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def data() -> ReportData:
    return synthetic_data(blocks=BLOCKS, records=40, evil=EVIL)


@pytest.fixture(scope="module")
def file(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(data, tmp_path_factory.mktemp("browser") / "report.html")


def opened(browser: Any, file: Path, width: int = 1200, **options: Any) -> tuple[Any, list[str]]:
    """The page once its charts are drawn, and what it complained of until then and does later."""
    page = browser.new_context(viewport={"width": width, "height": 800}, **options).new_page()
    page.set_default_timeout(60_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-finished]", state="attached", timeout=60_000)
    return page, complaints


@pytest.fixture(scope="module")
def shared(browser: Any, file: Path) -> Iterator[tuple[Any, list[str]]]:
    page, complaints = opened(browser, file)
    yield page, complaints
    page.context.close()


@pytest.fixture
def page(shared: tuple[Any, list[str]]) -> Iterator[Any]:
    """The open page; what a test does to it is on its own part of it."""
    page, complaints = shared
    yield page
    assert complaints == [] and page.locator("html").get_attribute("data-errors") is None


def test_every_chart_is_drawn(page: Any) -> None:
    assert page.locator("html").get_attribute("data-drawn") == str(CHARTS)
    drawn = page.locator("[data-chart] svg.marks")
    assert drawn.count() == CHARTS
    assert all(drawn.nth(i).locator("path, rect").count() > 5 for i in range(CHARTS))


def test_no_text_of_a_study_ran_as_a_script(page: Any, data: ReportData) -> None:
    assert page.title() == data.title and page.locator("img[onerror]").count() == 0


def test_a_mark_tells_its_numbers_and_their_spread(page: Any) -> None:
    page.locator("#figure-sensitivity-map .mark-text text").nth(8).hover()
    said = page.locator("#vg-tooltip-element.visible").inner_text()
    assert "± over folds" in said and "block" in said and "dB lost" in said


def test_a_mark_of_the_map_leads_to_its_layers(page: Any) -> None:
    cell = page.locator("#figure-sensitivity-map .mark-text text").nth(8)
    operation = re.search(r"operation: ([^;]+)", cell.get_attribute("aria-label"))
    assert operation is not None
    cell.click()
    rows = page.locator("#layer-table > tbody > tr:visible")
    laid_out(page, "#layer-table")  # the page scrolls there
    assert rows.count() == 1 and rows.locator("td").first.inner_text() == operation[1]
    page.locator("#layers select").nth(0).select_option("")
    page.locator("#layers select").nth(1).select_option("")


def test_the_map_has_a_second_layer(page: Any) -> None:
    first, second = page.locator("#figure-sensitivity-map"), page.locator("#figure-chosen-options")
    assert first.is_visible() and not second.is_visible()
    page.get_by_role("button", name="What was chosen").click()
    assert second.is_visible() and not first.is_visible()
    page.get_by_role("button", name="Sensitivity map").click()
    assert first.is_visible() and not second.is_visible()


def test_the_slider_moves_the_edge_between_two_models(page: Any) -> None:
    wipe, over = page.locator(".stage input"), page.locator(".stage .over")
    wipe.scroll_into_view_if_needed()
    box = wipe.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 90)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 90)
    page.mouse.up()
    assert cut(over) == pytest.approx(75, abs=2)
    wipe.focus()
    page.keyboard.press("End")
    assert cut(over) == 0


def cut(image: Any) -> float:
    """Percent of an image that is cut off on its right."""
    found = re.match(r"inset\(0px (?:([\d.]+)%)?", image.evaluate("image => getComputedStyle(image).clipPath") + " ")
    return float(found[1] or 0) if found else 0.0


def test_the_difference_of_two_models_is_seen_and_told(page: Any) -> None:
    right = page.locator(".viewer select").nth(1)
    page.locator(".viewer").get_by_role("button", name="Difference").click()
    right.select_option("0")
    assert page.locator(".viewer select").nth(0).input_value() == "0"
    page.get_by_text("differ by 0.0 of 255").wait_for()
    assert brightest(page) == 0  # a model differs from itself nowhere
    right.select_option("2")
    page.get_by_text(re.compile(r"differ by [1-9]\d*\.\d of 255")).wait_for()
    assert brightest(page) > 30


def brightest(page: Any) -> int:
    """The brightest pixel of the middle of the stage."""
    picture = Image.open(io.BytesIO(page.locator(".stage").screenshot())).convert("L")
    across, down = picture.size
    return int(np.asarray(picture)[down // 3 : -down // 10, across // 10 : -across // 10].max())


def test_a_picture_of_the_grid_is_shown_large(page: Any, data: ReportData) -> None:
    page.locator("#grid tbody tr").nth(3).locator("img").nth(5).click()
    assert page.locator(".viewer .prompt").inner_text() == data.captions[5]
    assert page.locator(".tag.right").inner_text() == data.pictures[3].name
    page.get_by_label("Next picture").click()
    assert page.locator(".viewer .prompt").inner_text() == data.captions[6]


def test_the_grid_shows_differences_from_full_precision(page: Any) -> None:
    page.locator("#grid-view").get_by_role("button", name="Differences").click()
    assert page.locator("#grid .difference").count() == 3 * 8
    assert page.locator("#grid tbody tr").first.locator(".difference").count() == 0
    page.locator("#grid-view").get_by_role("button", name="Pictures").click()
    assert page.locator("#grid .difference").count() == 0


def reach(page: Any, place: str) -> None:
    """Scroll there: long tables are laid out when they come into view."""
    page.locator(place).evaluate("place => place.scrollIntoView({ behavior: 'instant' })")
    laid_out(page, place)


def laid_out(page: Any, place: str) -> None:
    """Wait until a long table is in view, and so has been laid out."""
    page.wait_for_function(
        "place => document.querySelector(place).checkVisibility({ contentVisibilityAuto: true })", arg=place
    )


def column(page: Any, number: int) -> list[float]:
    cells = page.locator(f"#layer-table > tbody > tr > :nth-child({number})")
    return [float(value) for value in cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)")]


def test_the_slider_of_sizes_tells_what_each_would_be_like(page: Any, data: ReportData) -> None:
    slider = page.locator("#size")
    assert slider.input_value() == "2" and "about as good as this choice" in page.locator("#size-change").inner_text()
    slider.fill("0")
    assert page.locator("#size-bits").inner_text().startswith("2.50 bits per weight, 270 kB")
    assert "6.0 dB worse" in page.locator("#size-change").inner_text()
    assert page.locator("#size-near").inner_text() == "Nothing was measured near this size."
    assert page.locator("#size-picture").is_hidden()
    bars = page.locator("#size-bars > div")
    assert bars.count() == 2 and bars.nth(1).inner_text().split() == ["AdaLN", "3.50"]
    slider.fill("1")
    near = page.locator("#size-near").inner_text()
    assert near.startswith("Measured near this size: “uaq-3") and near.endswith("with 3.13 bits, 18.2 dB.")
    slider.fill("3")
    assert "3.0 dB better" in page.locator("#size-change").inner_text()


def test_the_code_that_loads_the_model_can_be_copied(page: Any) -> None:
    page.locator("#copy-code").click()
    page.locator("#copy-code", has_text=re.compile("Copied|Selected")).wait_for()
    assert "import qua2sedimo" in page.evaluate("() => String(getSelection())")


def test_the_layer_table_sorts(page: Any) -> None:
    head = page.locator("#layer-table thead th").nth(6)
    head.get_by_role("button").click()
    costs = column(page, 7)
    assert costs == sorted(costs, reverse=True) and head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").click()
    assert column(page, 7) == costs[::-1] and head.get_attribute("aria-sort") == "ascending"


def test_the_layer_table_searches_and_filters(page: Any, data: ReportData) -> None:
    shown, search = page.locator("#shown"), page.locator("#filter")
    reach(page, "#layer-table")
    search.fill("FF transformer_blocks.1")
    assert shown.inner_text() == f"2 of {len(data.choices)}"
    search.fill("")
    page.get_by_label("Show layers of one operation").select_option("SA-V")
    assert shown.inner_text() == f"{BLOCKS} of {len(data.choices)}"
    page.get_by_label("Show layers of one block").select_option("block 2")
    assert page.locator("#layer-table > tbody > tr:visible code").all_inner_texts() == [
        "transformer_blocks.2.attn1.to_v"
    ]
    page.get_by_label("Show layers of one operation").select_option("")
    page.get_by_label("Show layers of one block").select_option("")
    assert shown.inner_text() == f"{len(data.choices)} of {len(data.choices)}"


def test_a_layer_tells_why_and_what_else_it_could_have_had(page: Any, data: ReportData) -> None:
    reach(page, "#layer-table")
    layer = page.get_by_role("button", name="transformer_blocks.0.ff.net.2", exact=True)
    layer.click()
    detail = page.locator("#layer-table .detail")
    choice = next(c for c in data.choices if c.layer == "transformer_blocks.0.ff.net.2")
    assert detail.locator("p").inner_text() == f"{choice.option}: the budget. {choice.reason}"
    assert detail.locator("tbody tr").count() == 18
    assert detail.locator(".chosen td").first.inner_text() == choice.option
    layer.click()
    assert detail.count() == 0


def test_the_graph_opens_and_closes_its_blocks(page: Any, data: ReportData) -> None:
    rows = page.locator("#flow .row:not(.head)")
    assert rows.count() == BLOCKS + 2
    page.locator("#flow").get_by_role("button", name="block 1").click()
    inside = sum(node.block == "block 1" for node in data.nodes)
    assert rows.count() == BLOCKS + 2 + inside
    page.locator("#flow code", has_text="transformer_blocks.1.attn1.to_v").hover()
    assert page.locator("#flow path.in").count() == 1 and page.locator("#flow path.out").count() == 1
    page.get_by_role("button", name="Open all blocks").click()
    assert rows.count() == BLOCKS + 2 + len(data.nodes)
    page.get_by_role("button", name="Close all").click()
    assert rows.count() == BLOCKS + 2


def test_the_numbers_can_be_saved(page: Any, data: ReportData, tmp_path: Path) -> None:
    found = {}
    for name in ("Layers, CSV", "All options of all layers, CSV", "Measured configurations, CSV", "Everything, JSON"):
        with page.expect_download() as download:
            page.get_by_role("button", name=name, exact=True).click()
        download.value.save_as(tmp_path / "file")
        found[download.value.suggested_filename] = (tmp_path / "file").read_bytes().decode()
    layers = list(csv.DictReader(found["layers.csv"].splitlines(keepends=True)))
    assert [row["layer"] for row in layers] == [choice.layer for choice in data.choices]
    assert [int(row["bytes"]) for row in layers] == [choice.nbytes for choice in data.choices]
    options = list(csv.DictReader(found["options.csv"].splitlines(keepends=True)))
    assert [(row["layer"], row["option"]) for row in options] == [(s.layer, s.option) for s in data.options]
    assert len(list(csv.reader(found["measurements.csv"].splitlines()))) == len(data.points) + 1
    everything = json.loads(found["report.json"])
    assert everything["about"]["title"] == data.title and everything["options"]["rows"][0][0] == data.options[0].layer


def test_the_theme_follows_the_system_until_it_is_switched(browser: Any, file: Path) -> None:
    page, complaints = opened(browser, file, color_scheme="dark")
    shade = "document.body.computedStyleMap().get('background-color').toString()"
    dark = page.evaluate(shade)
    page.get_by_label("Switch between light and dark").click()
    light = page.evaluate(shade)
    assert (dark, light) == ("rgb(18, 21, 26)", "rgb(246, 247, 249)")
    page.get_by_label("Switch between light and dark").click()
    assert page.evaluate(shade) == dark and complaints == []
    page.context.close()


def test_on_a_phone_and_on_paper_the_page_is_no_wider_than_it_should_be(browser: Any, file: Path) -> None:
    page, complaints = opened(browser, file, width=375)
    beyond = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(beyond) == 0
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 720, "height": 900})
    assert page.evaluate(beyond) == 0 and complaints == []
    assert page.locator("#figure-sensitivity-map").is_visible() and page.locator("#figure-chosen-options").is_visible()
    page.context.close()


def on_paper(page: Any) -> None:
    """As a browser does that prints: tell the page, then lay it out as wide as A4 is between the margins."""
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 688, "height": 1000})


def test_on_paper_is_nothing_that_needs_a_screen_and_everything_that_was_folded_away(browser: Any, file: Path) -> None:
    page, complaints = opened(browser, file, color_scheme="dark")
    page.locator("#grid-view").get_by_role("button", name="Differences").click()
    on_paper(page)
    for place in ("nav", "input", "select", ".segments", ".tools", "#viewer", "#downloads", ".vega-embed summary"):
        assert not any(one.is_visible() for one in page.locator(place).all()), place
    said = page.locator("main").inner_text()
    assert not re.search("drag|click|point at|arcs", said, re.I)
    assert "Likeness to the full-precision picture" in said and "model: avatars-pixart" in said
    look = "([place, property]) => getComputedStyle(document.querySelector(place))[property]"
    assert page.evaluate(look, ["body", "backgroundColor"]) == "rgb(255, 255, 255)"
    assert page.evaluate(look, ["#grid .difference", "filter"]) == "none"
    assert complaints == []
    page.context.close()


def test_charts_are_drawn_for_paper_and_again_for_the_screen(browser: Any, file: Path) -> None:
    page, complaints = opened(browser, file)
    drawn = "[...document.querySelectorAll('[data-chart] svg.marks')].map((svg) => svg.viewBox.baseVal.width)"
    seen = "[...document.querySelectorAll('[data-chart] svg.marks')].map((svg) => svg.getBoundingClientRect())"
    screen = page.evaluate(drawn)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    paper = page.evaluate(drawn)
    assert len(paper) == CHARTS and all(340 < width <= 900 for width in paper) and max(screen) > 1000
    on_paper(page)
    for box in page.evaluate(seen):
        assert box["width"] > 250 and box["right"] < 688, "cut off at the right, or not drawn"
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 1200, "height": 800})
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(drawn) == screen and complaints == []
    page.context.close()


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="pdftotext is not installed")
def test_the_printed_layer_table_has_its_head_on_every_sheet(page: Any, data: ReportData, tmp_path: Path) -> None:
    page.pdf(path=tmp_path / "report.pdf", width="210mm", height="150mm")
    command = ["pdftotext", "-layout", tmp_path / "report.pdf", "-"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sheets = [sheet for sheet in text.split("\f") if re.search(r"transformer_blocks\.\d\.", sheet)]
    assert len(sheets) > 1 and all(re.search(r"operation +block +option", sheet) for sheet in sheets)
    assert all(choice.option in text for choice in data.choices) and "What was chosen" in text


def test_without_scripts_tables_and_pictures_are_there(browser: Any, file: Path, data: ReportData) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(file.as_uri())
    assert page.locator("#layer-table > tbody > tr").count() == len(data.choices)
    assert page.locator("#grid img").last.is_visible()
    assert not page.locator("#viewer").is_visible() and not page.locator("#filter").is_visible()
    page.context.close()


def test_a_study_of_800_layers_stays_small_and_quick(
    browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = synthetic_data(blocks=80, records=300, side=256)
    file = write_report(data, tmp_path / "report.html")
    assert len(data.choices) > 800 and file.stat().st_size < 6_000_000
    page, complaints = opened(browser, file)
    root = page.locator("html")
    assert root.get_attribute("data-drawn") == str(CHARTS) and complaints == []
    page.locator("#filter").fill("transformer_blocks.79.ff")
    assert page.locator("#shown").inner_text() == "2 of 806"
    with capsys.disabled():
        times = [root.get_attribute(f"data-{name}") for name in ("usable", "finished")]
        megabytes = file.stat().st_size / 1e6
        print(f"\n806 layers: {megabytes:.1f} MB, usable after {times[0]} ms, drawn after {times[1]} ms")
    page.context.close()


def test_charts_are_drawn_whatever_names_hold(browser: Any, tmp_path: Path) -> None:
    odd = synthetic_data(blocks=BLOCKS, records=40, evil=ODD)
    page, complaints = opened(browser, write_report(odd, tmp_path / "odd.html"))
    assert complaints == [] and page.locator("html").get_attribute("data-errors") is None
