"""A hub on this machine: folders served as models by name, as much of the protocol as downloads need; and its cache."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(folders: Mapping[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve folders under OWNER/NAME; gives the address for HF_ENDPOINT and the files whose content was asked for."""
    fetched: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(True)

        def do_HEAD(self) -> None:
            self._answer(False)

        def _answer(self, whole: bool) -> None:
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            if parts[:2] == ["api", "models"]:
                self._describe("/".join(parts[2:4]), parts[4:5])
            else:
                self._give("/".join(parts[:2]), "/".join(parts[4:]), whole)

        def _give(self, name: str, file: str, whole: bool) -> None:
            path = folders.get(name, Path("/nowhere")) / file
            if not path.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return
            if whole:
                fetched.append(f"{name}/{file}")
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self._send(200, content, {"X-Repo-Commit": COMMIT, "ETag": etag}, whole)

        def _describe(self, name: str, what: list[str]) -> None:
            if name not in folders:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
                return
            files = {path.relative_to(folders[name]).as_posix(): path for path in folders[name].rglob("*")}
            files = {file: path for file, path in sorted(files.items()) if path.is_file()}
            tree = [{"type": "file", "path": f, "size": p.stat().st_size, "oid": COMMIT} for f, p in files.items()]
            model = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
            self._send(200, json.dumps(tree if what == ["tree"] else model).encode(), {})

        def _send(self, status: int, content: bytes, headers: dict[str, str], whole: bool = True) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if whole:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def cached(folder: Path, name: str, cache: Path) -> Path:
    """Put a folder into a cache folder as the hub's client does, the files as links to blobs; returns the snapshot."""
    place = cache / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / COMMIT
    (place / "blobs").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = place / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return snapshot
