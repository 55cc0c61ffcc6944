"""The page in a real browser: every chart is drawn, sorting and filtering work, and nothing goes wrong."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qua2sedimo.report import write_report

from .synthetic import synthetic_data
from .test_page import EVIL

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SWITCHES = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--virtual-time-budget=15000", "--window-size=1000,800", "--dump-dom"),
]

#: What a reader does: sort by cost, most expensive first, then look for the feed-forward layers of block 1.
VISIT = """
<script>
document.querySelectorAll("#layer-table thead button")[9].click();
const rows = [...document.querySelectorAll("#layer-table tbody tr")];
const cells = rows.map((row) => Number(row.cells[9].dataset.value));
document.documentElement.dataset.sorted = cells.every((value, i) => i === 0 || cells[i - 1] >= value);
const filter = document.getElementById("filter");
filter.value = "FF transformer_blocks.1";
filter.dispatchEvent(new Event("input"));
document.documentElement.dataset.filtered = document.getElementById("shown").textContent;
setTimeout(() => {
  const root = document.documentElement;
  root.dataset.beyond = Math.max(0, root.scrollWidth - root.clientWidth);
}, 2000);
</script>
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def visited(page: Path, profile: Path) -> str:
    """The page's DOM after a visit."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *SWITCHES, f"--user-data-dir={profile}", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.fixture(scope="module")
def dom(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("browser")
    page = write_report(synthetic_data(blocks=4, evil=EVIL), folder / "report.html")
    before, end, after = page.read_text().rpartition("</body>")
    page.write_text(before + VISIT + end + after)
    return visited(page, folder / "profile")


def attribute(dom: str, name: str) -> str | None:
    root = re.search(r"<html[^>]*>", dom)
    assert root is not None
    found = re.search(f'data-{name}="([^"]*)"', root[0])
    return found[1] if found else None


def test_every_chart_is_drawn_without_errors(dom: str) -> None:
    assert attribute(dom, "errors") is None
    assert attribute(dom, "drawn") == "7"
    places = dom.split('data-chart="')[1:]
    assert len(places) == 7 and all("<svg" in place for place in places)


def test_no_name_ran_as_a_script(dom: str) -> None:
    title = re.search(r"<title>(.*?)</title>", dom, re.S)
    assert title is not None and title[1].startswith("avatars-pixart at 3.5 bits")


def test_the_layer_table_sorts_and_filters(dom: str) -> None:
    assert attribute(dom, "sorted") == "true"
    assert attribute(dom, "filtered") == "2 of 46"


def test_the_page_itself_does_not_scroll_sideways(dom: str) -> None:
    assert attribute(dom, "beyond") == "0"
