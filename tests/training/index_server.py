"""A package index on loopback: real HTTP, with ranges, and with the failures that networks have."""

import hashlib
import html
import io
import json
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class IndexServer(ThreadingHTTPServer):
    """Serves `files` by name, and pages that list them by package."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.packages: dict[str, str] = {}  # file -> package
        self.cut_after: int | None = None  # close the next download's connection after so many bytes
        self.ranges = True
        self.json_pages = False
        self.requests: list[tuple[str, str]] = []  # path, Range header
        self.authorisations: list[str] = []
        self.hold = threading.Event()  # answers wait while it is cleared
        self.hold.set()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of some tests."""

    @property
    def url(self) -> str:
        """Root of the server."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, package: str, file: str, content: bytes) -> dict[str, Any]:
        """Offer a file; return it as a distribution of the lock file."""
        self.files[file] = content
        self.packages[file] = package
        return {
            "package": package,
            "version": "1.0",
            "file": file,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }

    def downloads(self) -> list[str]:
        """The Range headers of all requests for files, in order."""
        return [wanted for path, wanted in self.requests if path.startswith("/files/")]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: IndexServer

    def do_HEAD(self) -> None:
        self.server.requests.append((self.path, ""))
        self.send_error(404)

    def do_GET(self) -> None:
        if given := self.headers.get("Authorization"):
            self.server.authorisations.append(given)
        self.server.requests.append((self.path, self.headers.get("Range", "")))
        self.server.hold.wait()
        kind, _, name = self.path.strip("/").partition("/")
        if kind == "simple":
            self._page(name)
        elif kind == "files" and name in self.server.files:
            self._file(self.server.files[name])
        else:
            self.send_error(404)

    def _page(self, package: str) -> None:
        names = [file for file, owner in self.server.packages.items() if owner == package]
        if not names:
            self.send_error(404)
        elif self.server.json_pages:
            entries = [{"filename": name, "url": f"/files/{name}", "hashes": {}} for name in names]
            self._send(json.dumps({"files": entries}).encode(), "application/vnd.pypi.simple.v1+json")
        else:
            links = [f'<a href="../../files/{name}#sha256=0">{html.escape(name)}</a>' for name in names]
            self._send(f"<html><body>{''.join(links)}</body></html>".encode(), "text/html")

    def _file(self, content: bytes) -> None:
        start = 0
        if self.server.ranges and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        part = content[start:]
        if self.server.cut_after is not None:
            part, self.server.cut_after = part[: self.server.cut_after], None
            self.close_connection = True
        self.wfile.write(part)

    def _send(self, body: bytes, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""


@contextmanager
def running_index() -> Iterator[IndexServer]:
    """An index for the time of the `with` block."""
    server = IndexServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def stored_wheel(members: Mapping[str, bytes]) -> bytes:
    """A zip with these members, as long as they are."""
    return wheel(members, zipfile.ZIP_STORED)


def wheel(members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip with these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()
