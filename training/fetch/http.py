"""Downloads over HTTP that resume, retry, and end in exactly the bytes that were asked for."""

import errno
import hashlib
import http.client
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

from training.errors import DownloadFailed

TIMEOUT_SECONDS = 60.0  # for a connection, and for the next bytes
ATTEMPTS = 4  # in a row without a new byte
_CHUNK = 1 << 18
_HEADERS = {"User-Agent": "quintet-training", "Accept-Encoding": "identity"}
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}


class Stopped(Exception):
    """The run is ending; what is on disk stays, and the next run resumes it."""


class Document(NamedTuple):
    """A small answer and where it finally came from."""

    body: bytes
    content_type: str
    url: str


class Client:
    """Opens URLs. `certificates` is a file of trusted authorities; without it the system's are used."""

    def __init__(
        self, stop: threading.Event, *, certificates: str | None = None, proxy: str | None = None, pause: float = 0.5
    ) -> None:
        self._stop = stop
        self._pause_seconds = pause
        self._passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
        handlers: list[urllib.request.BaseHandler] = [
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=certificates)),
            urllib.request.HTTPBasicAuthHandler(self._passwords),
        ]
        if proxy:
            handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
        self._opener = urllib.request.build_opener(*handlers)

    def without_password(self, url: str) -> str:
        """The URL without user and password; from now on they are sent, as a header, to that host alone."""
        parts = urlsplit(url)
        if parts.username is None:
            return url
        host = parts.netloc.rpartition("@")[2]
        self._passwords.add_password(
            None, f"{parts.scheme}://{host}/", parts.username, parts.password or "", is_authenticated=True
        )
        return urlunsplit(parts._replace(netloc=host))

    def get(self, url: str, headers: Mapping[str, str], limit: int) -> Document:
        """A small document of at most `limit` bytes. Raises DownloadFailed."""
        attempt = 0
        while True:
            try:
                request = urllib.request.Request(url, headers={**_HEADERS, **headers})  # noqa: S310 a file: index is fine
                with self._opener.open(request, timeout=TIMEOUT_SECONDS) as response:
                    body = response.read(limit + 1)
                    if len(body) > limit:
                        raise DownloadFailed(f"{_short(url)} is longer than {limit} bytes")
                    return Document(body, response.headers.get_content_type(), response.url)
            except (OSError, http.client.HTTPException) as error:
                attempt += 1
                self._wait_or_raise(url, error, attempt)

    def download(self, url: str, target: Path, size: int, sha256: str, advance: Callable[[int], None]) -> None:
        """Fetch `url` to `target`, going on where `target` ends; `advance` is told of bytes as they are there.

        On return the file has this size and digest. Raises DownloadFailed, and removes a file with another digest;
        raises Stopped if the run ends.
        """
        part = _Part(target, advance)
        resumed = part.size > 0
        if part.size > size:
            part.restart()
        attempt = 0
        while part.size < size:
            before = part.size
            try:
                self._receive(url, part, size)
            except (OSError, http.client.HTTPException) as error:
                attempt = 1 if part.size > before else attempt + 1
                self._wait_or_raise(url, error, attempt)
        if part.digest.hexdigest() == sha256:
            return
        part.restart()
        if not resumed:
            raise DownloadFailed(f"{_short(url)} has another SHA-256 than the lock file")
        self.download(url, target, size, sha256, advance)  # what an earlier run left was damaged

    def _receive(self, url: str, part: "_Part", size: int) -> None:
        """One request for the rest of the file."""
        headers = {**_HEADERS, "Range": f"bytes={part.size}-"} if part.size else _HEADERS
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 the digest decides what is accepted
        with self._opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            if part.size and response.status != HTTPStatus.PARTIAL_CONTENT:
                part.restart()  # this server sends the whole file whatever is asked
            with part.path.open("ab") as file:
                while chunk := response.read(_CHUNK):
                    if self._stop.is_set():
                        raise Stopped
                    if part.size + len(chunk) > size:
                        raise DownloadFailed(f"{_short(url)} is longer than {size} bytes")
                    file.write(chunk)
                    part.add(chunk)
        if part.size < size:
            raise ConnectionError("the connection ended early")

    def _wait_or_raise(self, url: str, error: Exception, attempt: int) -> None:
        """Wait before the next attempt, unless none can help."""
        if isinstance(error, urllib.error.HTTPError):
            reason, hopeless = f"answered {error.code}", error.code not in _TRANSIENT
        else:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            reason, hopeless = str(cause) or type(cause).__name__, getattr(cause, "errno", None) in _DISK
        if hopeless or attempt >= ATTEMPTS:
            raise DownloadFailed(f"{_short(url)}: {reason}") from error
        if self._stop.wait(self._pause_seconds * 2**attempt):
            raise Stopped


class _Part:
    """A file that grows, with the digest of what it holds."""

    def __init__(self, path: Path, advance: Callable[[int], None]) -> None:
        self.path = path
        self.size = 0
        self.digest = hashlib.sha256()
        self._advance = advance
        if path.exists():
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    self.add(chunk)

    def add(self, chunk: bytes) -> None:
        """Count bytes that were written."""
        self.digest.update(chunk)
        self.size += len(chunk)
        self._advance(len(chunk))

    def restart(self) -> None:
        """Forget everything."""
        self.path.unlink(missing_ok=True)
        self._advance(-self.size)
        self.size = 0
        self.digest = hashlib.sha256()


def _short(url: str) -> str:
    """A URL for people: its host and its last part."""
    parts = urlsplit(url)
    return f"{parts.hostname or 'file'}/…/{parts.path.rstrip('/').rpartition('/')[2]}"
