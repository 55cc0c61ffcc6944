"""README and docs as data: what a page tells its reader to type, to import, to open."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

_FENCE = re.compile(r"^ {0,3}(```+|~~~+)\s*(\w*)")
_NOT_RUN = re.compile(r"<!--\s*not run:\s*(.+?)\s*-->")
_CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.S)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]+(?:\([^()]*\))?)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it starts at, and why it is not run (empty if it is)."""

    page: Path
    line: int
    language: str
    text: str
    reason: str

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def lines(self) -> list[list[str]]:
        """The words of each command of a shell block: continued lines joined, comments gone."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [words for line in joined if (words := shlex.split(line, comments=True))]


@dataclass(frozen=True)
class Code:
    """A piece of inline code, with the text of its line or table row, and why it is not run (empty if it is)."""

    page: Path
    line: int
    text: str
    row: str
    reason: str

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path, text: str | None = None) -> list[Block]:
    """The fenced blocks of a page, in order. ``<!-- not run: REASON -->`` on the line before marks one."""
    found: list[Block] = []
    lines = (page.read_text(encoding="utf-8") if text is None else text).splitlines()
    start, fence, language = 0, "", ""
    for number, line in enumerate(lines):
        match = _FENCE.match(line)
        if match and not fence:
            start, fence, language = number, match[1], match[2]
        elif fence and line.strip().startswith(fence):
            above = next((above for above in reversed(lines[:start]) if above.strip()), "")
            marked = _NOT_RUN.fullmatch(above.strip())
            body = "\n".join(lines[start + 1 : number]) + "\n"
            found.append(Block(page, start + 1, language, body, marked[1] if marked else ""))
            fence = ""
    if fence:
        raise ValueError(f"{page.name}:{start + 1}: the fence is not closed")
    return found


def prose(page: Path, text: str | None = None) -> str:
    """The page with its fenced blocks blanked out, lines kept."""
    fence, kept = "", []
    for line in (page.read_text(encoding="utf-8") if text is None else text).splitlines():
        match = _FENCE.match(line)
        inside = bool(fence) or bool(match)
        if match and not fence:
            fence = match[1]
        elif fence and line.strip().startswith(fence):
            fence = ""
        kept.append("" if inside else line)
    return "\n".join(kept)


def inline(page: Path, text: str | None = None) -> list[Code]:
    """Inline code outside blocks. ``<!-- not run: REASON -->`` on the same line (or table row) marks its commands."""
    plain, found = prose(page, text), []
    # A table row; or lines up to an empty one or the next item of a list.
    paragraph = re.compile(r"^\|.*$|^(?!\s*$|\|).*$\n?(?:^(?!\s*$|\||\s*(?:[-*]|\d+\.) ).*$\n?)*", re.M)
    for part in paragraph.finditer(plain):
        for match in _CODE.finditer(part[0]):
            line = plain.count("\n", 0, part.start() + match.start()) + 1
            end = part[0].find("\n", match.end())
            marked = _NOT_RUN.search(part[0][match.end() : len(part[0]) if end < 0 else end])
            code = " ".join(match[2].replace("\\|", "|").split())
            found.append(Code(page, line, code, part[0], marked[1] if marked else ""))
    return found


def links(page: Path, text: str | None = None) -> list[str]:
    """Targets of all Markdown links and pictures of a page, outside code."""
    return _LINK.findall(_CODE.sub("", prose(page, text)))


def anchors(page: Path, text: str | None = None) -> set[str]:
    """Names of the page's headings as GitHub makes them: lower case, hyphens for spaces, punctuation gone."""
    names: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", prose(page, text), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        names[name] = names.get(name, -1) + 1
        if names[name]:
            names[f"{name}-{names[name]}"] = 0
    return set(names)


def broken_links(page: Path, text: str | None = None) -> list[str]:
    """Relative links to files that are not there, or to headings that no page has."""
    wrong = []
    for target in links(page, text):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        known = anchors(file, text if file == page else None) if file.suffix == ".md" and file.is_file() else set()
        if not file.exists() or (anchor and anchor not in known):
            wrong.append(target)
    return wrong
