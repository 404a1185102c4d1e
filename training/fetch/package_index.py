"""The package index that pip is configured with (PEP 503 and PEP 691).

`pip download` cannot be used: to read the metadata of a source distribution it runs the package's build code. Reading
the index and fetching the one pinned file runs nothing.
"""

import ast
import html
import json
import re
import subprocess
import sys
from typing import NamedTuple
from urllib.parse import unquote, urldefrag, urljoin

from training.errors import DownloadFailed
from training.fetch.downloads import Downloader, Page
from training.fetch.lock import Distribution

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_LINK = re.compile(rb"""href\s*=\s*["']([^"']+)""", re.IGNORECASE)


class PipSettings(NamedTuple):
    """What pip's configuration files and PIP_* variables say about the index."""

    index_urls: tuple[str, ...] = ()
    certificates: str = ""
    proxy: str = ""


def pip_settings() -> PipSettings:
    """Ask pip. Raises DownloadFailed if it does not answer."""
    lines = (line.partition("=") for line in _pip("config", "list").splitlines() if "=" in line)
    values = {key: str(ast.literal_eval(value)) for key, _, value in lines}

    def option(name: str) -> str:
        keys = (f"{section}.{name}" for section in (":env:", "download", "global"))  # pip's own precedence
        return next((values[key] for key in keys if key in values), "")

    first = option("index-url") or _default_index()
    return PipSettings((first, *option("extra-index-url").split()), option("cert"), option("proxy"))


def _default_index() -> str:
    """The index of pip without configuration. Its help alone names it."""
    found = re.search(r"--index-url <url> .*?\(default (\S+)\)", " ".join(_pip("download", "--help").split()))
    if not found:
        raise DownloadFailed("pip does not name its default index. Set PIP_INDEX_URL")
    return found[1]


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if answer.returncode:
        raise DownloadFailed(
            f"pip did not show its settings: {answer.stderr.strip()}. Add pip with: python -m ensurepip"
        )
    return answer.stdout


class PackageIndex:
    """Finds the URLs of pinned distributions."""

    def __init__(self, downloader: Downloader, index_urls: tuple[str, ...]) -> None:
        self._downloader = downloader
        self._urls = tuple(downloader.without_password(url).rstrip("/") for url in index_urls)

    def url_of(self, distribution: Distribution) -> str:
        """The URL of the distribution. Raises DownloadFailed if no index lists it."""
        project = re.sub(r"[-_.]+", "-", distribution.package).lower()
        failures = []
        for index in self._urls:
            url = f"{index}/{project}/" + ("index.html" if index.startswith("file:") else "")
            try:
                page = self._downloader.page(url, _ACCEPT)
            except DownloadFailed as error:
                failures.append(str(error))
                continue
            for name, link in _links(page):
                if name == distribution.file:
                    return urljoin(page.url, link)
            failures.append(f"the index does not list {distribution.file}")
        raise DownloadFailed("; ".join(failures))


def _links(page: Page) -> list[tuple[str, str]]:
    """File names with their URLs, without fragments."""
    if page.content_type.endswith("json"):
        return [(entry["filename"], urldefrag(entry["url"]).url) for entry in json.loads(page.body)["files"]]
    links = [urldefrag(html.unescape(link.decode())).url for link in _LINK.findall(page.body)]
    return [(unquote(link).rpartition("/")[2], link) for link in links]
