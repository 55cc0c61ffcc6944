"""README, docs and the API reference as one web site without a network: ``python docs/site/build.py [FOLDER]``.

The pages are copied as they lie, so that their links hold; a page for each public module is written beside them, and
Sphinx makes HTML of all. A warning (a reference to nothing, a docstring that is no valid markup) is an error.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import shutil
import tempfile
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent
#: The pages for each kind of reader, in the order in which they are read; those not named here follow.
ORDER = (
    ("Start", ("docs/install", "docs/first-result", "docs/scale", "docs/which-size")),
    (
        "Guides",
        (
            "docs/own-pipeline",
            "docs/guides/sdxl-one-file",
            "docs/guides/flux-or-sd3",
            "docs/guides/video-two-denoisers",
            "docs/guides/little-memory",
            "docs/guides/judge-quality",
            "docs/guides/load-elsewhere",
            "docs/guides/share-on-the-hub",
            "docs/guides/in-ci",
            "docs/report",
            "docs/search",
            "docs/troubleshooting",
        ),
    ),
    ("Comparisons", ("docs/compensation", "docs/comparison", "docs/gallery", "docs/search-results")),
    (
        "Research",
        (
            "docs/research/reproduce-the-paper",
            "docs/research/extend",
            "docs/research/records-in-pandas",
            "docs/sensitivity",
            "docs/sampling",
            "docs/figures",
        ),
    ),
    (
        "Reference",
        (
            "docs/commands",
            "docs/stability",
            "docs/metrics",
            "docs/metrics-images",
            "docs/measuring",
            "docs/formats",
            "docs/runtime",
            "docs/coverage",
        ),
    ),
    ("Background", ("docs/method", "docs/architecture", "docs/zoo", "docs/safety")),
    ("Questions and project", ("docs/faq", "docs/glossary", "CHANGELOG", "CONTRIBUTING")),
)


def public_modules() -> list[ModuleType]:
    """The package and those of its packages that say by ``__all__`` what is public; commands are no API."""
    import qua2sedimo

    found = [m.name for m in pkgutil.iter_modules(qua2sedimo.__path__, "qua2sedimo.") if m.ispkg]
    modules = [qua2sedimo, *map(importlib.import_module, found)]
    return [m for m in modules if hasattr(m, "__all__") and m.__name__ != "qua2sedimo.commands"]


def api_page(module: ModuleType) -> str:
    """The reStructuredText that lets Sphinx document every public name of a module."""
    head = f"{module.__name__}\n{'=' * len(module.__name__)}\n\n"
    return f"{head}.. automodule:: {module.__name__}\n   :members:\n   :imported-members:\n   :undoc-members:\n"


def toctrees(pages: list[str]) -> str:
    """The navigation, as MyST directives that are appended to the front page."""
    named = [page for _, group in ORDER for page in group]
    groups = [*ORDER, ("More", tuple(p for p in pages if p not in named))]
    api = tuple(f"docs/api/{m.__name__}" for m in public_modules())
    shown = [(title, [p for p in group if p in pages]) for title, group in groups] + [("API reference", list(api))]
    entry = "```{{toctree}}\n:hidden:\n:caption: {}\n\n{}\n```\n"
    return "\n" + "\n".join(entry.format(title, "\n".join(group)) for title, group in shown if group)


def stage(folder: Path) -> None:
    """Lay out what Sphinx reads: README as the front page, docs beside it, a page for each public module."""
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("site", "api"))
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(Path(__file__).with_name("conf.py"), folder / "conf.py")
    (folder / "docs" / "api").mkdir()
    for module in public_modules():
        (folder / "docs" / "api" / f"{module.__name__}.rst").write_text(api_page(module), encoding="utf-8")
    written = sorted(page.relative_to(folder).with_suffix("") for page in (folder / "docs").rglob("*.md"))
    pages = ["CHANGELOG", "CONTRIBUTING", *(page.as_posix() for page in written)]
    with (folder / "README.md").open("a", encoding="utf-8") as front:
        front.write(toctrees(pages))


def build(out: Path) -> int:
    """Make the site in ``out``; Sphinx's status, 0 if there was no warning."""
    from sphinx.cmd.build import build_main

    with tempfile.TemporaryDirectory(prefix="qua2sedimo-docs-") as staged:
        stage(Path(staged) / "source")
        options = ["-q", "-W", "--keep-going", "-b", "html", "-d", f"{staged}/doctrees"]
        status = build_main([*options, f"{staged}/source", str(out)])
    # Where a browser that opens the folder lands.
    (out / "index.html").write_text('<meta http-equiv="refresh" content="0; url=README.html">\n', encoding="utf-8")
    return status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "docs")
    folder = parser.parse_args().folder
    status = build(folder)
    print(f"{folder / 'index.html'}")
    raise SystemExit(status)
