"""The report page of a study of SDXL's size: bytes, and how soon it can be used in Chromium.

    python benchmarks/page.py [--blocks 80] [--side 1024] [--runs 3] [--json FILE]

A made-up study (that of the tests) of 10 layers a block with 4 × 8 pictures is written as report.html and opened in a
new browser a run. Printed is JSON: megabytes of the page and of its parts; of the median run, seconds until the page
can be used (scrolled, searched, sorted, its graph opened), until what is in view is drawn, and until all is; CPU
seconds of the page's process until then, which other work on the machine changes less; and the same of a page that
holds nothing but as many table cells, as a yardstick.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from tests.report.synthetic import synthetic_data

from qua2sedimo.formats.files import write_json
from qua2sedimo.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


def opened(play: Any, program: str, file: Path, ready: str) -> dict[str, float]:
    """Milliseconds by the page's own clock, and CPU seconds of its process, once ``ready`` is there."""
    browser = play.chromium.launch(executable_path=program, args=SWITCHES)
    try:
        page = browser.new_context(viewport={"width": 1200, "height": 800}).new_page()
        metrics = page.context.new_cdp_session(page)
        metrics.send("Performance.enable")
        page.goto(file.as_uri(), timeout=300_000)
        page.wait_for_selector(ready, state="attached", timeout=300_000)
        root = page.locator("html")
        found = {name: root.get_attribute(f"data-{name}") for name in ("usable", "visible", "finished")}
        cpu = {m["name"]: m["value"] for m in metrics.send("Performance.getMetrics")["metrics"]}
        loaded = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        times = {name: float(value) / 1000 for name, value in found.items() if value}
        return {**times, "loaded": loaded / 1000, "cpu": cpu["ProcessTime"], "script": cpu["ScriptDuration"]}
    finally:
        browser.close()


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}


def yardstick(cells: int) -> str:
    rows = "".join(f"<tr>{'<td>0.123</td>' * 10}</tr>" for _ in range(cells // 10))
    return f"<!DOCTYPE html><title>yardstick</title><table>{rows}</table>"


def parts(page: str) -> dict[str, float]:
    """Megabytes of what the page is made of."""
    pictures = sum(len(url) for url in re.findall(r'"(data:image/[^"]*)"', page))
    data = sum(len(text) for text in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S))
    return {"pictures": pictures / 1e6, "data and charts": data / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=80)
    parser.add_argument("--side", type=int, default=1024, help="of the pictures, in pixels; a multiple of 16")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the result to this file too")
    arguments = parser.parse_args()
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise SystemExit("no Chromium on this machine")
    data = synthetic_data(blocks=arguments.blocks, records=300, side=arguments.side)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        file, plain = write_report(data, Path(folder) / "report.html"), Path(folder) / "plain.html"
        text = file.read_text(encoding="utf-8")
        plain.write_text(yardstick(text.count("<td")), encoding="utf-8")
        runs, plain_runs = [], []
        for _ in range(arguments.runs):
            runs.append(opened(play, program, file, "html[data-finished]"))
            plain_runs.append(opened(play, program, plain, "table"))
        result = {
            "layers": len(data.choices),
            "megabytes": round(file.stat().st_size / 1e6, 3),
            "of which": {name: round(value, 3) for name, value in parts(text).items()},
            "seconds": median(runs),
            "yardstick": median(plain_runs),
        }
    print(json.dumps(result, indent=1))
    if arguments.json:
        write_json(arguments.json, result)


if __name__ == "__main__":
    main()
