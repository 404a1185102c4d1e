"""Downloads that resume, retry, and end with the expected digest.

urllib and not requests or pooch: the package index may be a folder (a file: URL), and a download that an earlier run
left unfinished continues where it stopped.
"""

import errno
import http.client
import itertools
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

from server.models.artefact import file_sha256
from training.errors import DownloadFailed

TIMEOUT_SECONDS = 60.0  # to connect, and between two reads
ATTEMPTS = 4  # in a row that bring no new byte
PAGE_LIMIT = 64 << 20  # bytes
_CHUNK = 1 << 18
_HEADERS = {"User-Agent": "quintet-training", "Accept-Encoding": "identity"}
_ERRORS = (OSError, http.client.HTTPException)
_RETRYABLE_STATUS = {408, 425, 429, 500, 502, 503, 504}
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}


class Page(NamedTuple):
    """A small response, and the URL that sent it after redirects."""

    body: bytes
    content_type: str
    url: str


class Downloader:
    """Opens URLs. `certificates` is a file of trusted authorities; the default is the system's."""

    def __init__(self, *, certificates: str = "", proxy: str = "", pause_seconds: float = 0.5) -> None:
        self._pause_seconds = pause_seconds
        self._passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
        context = ssl.create_default_context(cafile=certificates or None)
        proxies = {"http": proxy, "https": proxy} if proxy else None  # None: those of the environment
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context),
            urllib.request.HTTPBasicAuthHandler(self._passwords),
            urllib.request.ProxyHandler(proxies),
        )

    def without_password(self, url: str) -> str:
        """The URL without user and password. From now on only its host gets them, as a header."""
        parts = urlsplit(url)
        if parts.username is None:
            return url
        host = parts.netloc.rpartition("@")[2]
        root = f"{parts.scheme}://{host}/"
        self._passwords.add_password(None, root, parts.username, parts.password or "", is_authenticated=True)
        return urlunsplit(parts._replace(netloc=host))

    def page(self, url: str, accept: str) -> Page:
        """A document of at most PAGE_LIMIT bytes. Raises DownloadFailed."""
        for attempt in itertools.count(1):
            try:
                with self._open(url, {"Accept": accept}) as response:
                    body = response.read(PAGE_LIMIT + 1)
                    content_type, final_url = response.headers.get_content_type(), response.url
                break
            except _ERRORS as error:
                self._wait_or_raise(url, error, attempt)
        if len(body) > PAGE_LIMIT:
            raise DownloadFailed(f"{_short(url)} is longer than {PAGE_LIMIT} bytes")
        return Page(body, content_type, final_url)

    def download(self, url: str, target: Path, size: int, sha256: str, advance: Callable[[int], None]) -> None:
        """Fetch `url` into `target`, which may hold the beginning already; `advance` gets the number of new bytes.

        Raises DownloadFailed, or OSError if this machine's disk is full. A file with another digest is removed, and
        fetched again if an earlier run began it.
        """
        resumed = _size(target)
        advance(resumed)
        attempt = 0
        while (before := _size(target)) < size:
            try:
                self._append(url, target, size, advance)
            except _ERRORS as error:
                attempt = 1 if _size(target) > before else attempt + 1
                self._wait_or_raise(url, error, attempt)
        if file_sha256(target) == sha256:
            return
        advance(-_size(target))
        target.unlink()
        if not resumed:
            raise DownloadFailed(f"{_short(url)} has another SHA-256 than the lock file")
        self.download(url, target, size, sha256, advance)

    def _append(self, url: str, target: Path, size: int, advance: Callable[[int], None]) -> None:
        """One request for the rest of the file."""
        done = _size(target)
        with self._open(url, {"Range": f"bytes={done}-"} if done else {}) as response:
            if done and response.status != HTTPStatus.PARTIAL_CONTENT:  # the server sends the whole file
                target.unlink()
                advance(-done)
                done = 0
            with target.open("ab") as file:
                while chunk := response.read(_CHUNK):
                    done += len(chunk)
                    if done > size:
                        raise DownloadFailed(f"{_short(url)} is longer than {size} bytes")
                    file.write(chunk)
                    advance(len(chunk))
        if done < size:
            raise ConnectionError("the connection ended early")

    def _open(self, url: str, headers: Mapping[str, str]) -> "urllib.response.addinfourl":
        request = urllib.request.Request(url, headers={**_HEADERS, **headers})  # noqa: S310 digests decide
        response: urllib.response.addinfourl = self._opener.open(request, timeout=TIMEOUT_SECONDS)
        return response

    def _wait_or_raise(self, url: str, error: Exception, attempt: int) -> None:
        """Wait before the next attempt; raise DownloadFailed if there is none, or the error of this machine's disk."""
        if isinstance(error, urllib.error.HTTPError):
            reason, retryable = f"answered {error.code}", error.code in _RETRYABLE_STATUS
        else:
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise error  # no other source would help
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            reason, retryable = str(cause) or type(cause).__name__, True
        if not retryable or attempt >= ATTEMPTS:
            raise DownloadFailed(f"{_short(url)}: {reason}") from error
        time.sleep(self._pause_seconds * 2**attempt)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _short(url: str) -> str:
    """Host and file name of a URL, for messages."""
    parts = urlsplit(url)
    return f"{parts.hostname or 'file'}/…/{parts.path.rstrip('/').rpartition('/')[2]}"
