"""The package index that pip is configured with, read directly (PEP 503 and PEP 691).

Asking pip itself to download a source distribution would run the package's build code; reading the index and
fetching the one pinned file runs nothing. Where the index is, its certificate and its proxy come from pip's own
configuration, so a company's mirror serves here too.
"""

import html.parser
import json
import re
from typing import NamedTuple
from urllib.parse import urldefrag, urljoin

from training.errors import DownloadFailed
from training.fetch.http import Client
from training.fetch.lock import Carrier

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_PAGE_LIMIT = 64 << 20


class PipSettings(NamedTuple):
    """Where pip would look."""

    index_urls: tuple[str, ...] = ()
    certificates: str | None = None
    proxy: str | None = None


def pip_settings() -> PipSettings:
    """Read the files of pip's configuration and its environment (PIP_INDEX_URL, ...).

    Raises DownloadFailed if there is no pip.
    """
    try:
        from pip._internal.configuration import Configuration
        from pip._internal.exceptions import ConfigurationError
        from pip._internal.models.index import PyPI
    except ImportError as error:
        raise DownloadFailed("pip is not installed here; add it with: python -m ensurepip") from error
    configuration = Configuration(isolated=False)
    configuration.load()

    def option(name: str) -> str | None:
        for section in (":env:", "download", "global"):  # pip's own precedence
            try:
                return str(configuration.get_value(f"{section}.{name}"))
            except ConfigurationError:
                continue
        return None

    first = option("index-url") or PyPI.simple_url
    more = (option("extra-index-url") or "").split()
    return PipSettings((first, *more), option("cert"), option("proxy"))


class PackageIndex:
    """Finds the URLs of pinned files."""

    def __init__(self, client: Client, index_urls: tuple[str, ...]) -> None:
        self._client = client
        self._urls = tuple(client.without_password(url) for url in index_urls)

    def url_of(self, carrier: Carrier) -> str:
        """Where the carrier's file lies. Raises DownloadFailed if no index has it."""
        project = re.sub(r"[-_.]+", "-", carrier.package).lower()
        failures = []
        for index in self._urls:
            page_url = f"{index.rstrip('/')}/{project}/"
            if page_url.startswith("file:"):
                page_url += "index.html"
            try:
                page = self._client.get(page_url, {"Accept": _ACCEPT}, _PAGE_LIMIT)
            except DownloadFailed as error:
                failures.append(str(error))
                continue
            links = _json_links(page.body) if page.content_type.endswith("json") else _html_links(page.body)
            for name, link in links:
                if name == carrier.file:
                    return urljoin(page.url, link)
            failures.append(f"the index does not list {carrier.file}")
        raise DownloadFailed("; ".join(failures))


def _json_links(body: bytes) -> list[tuple[str, str]]:
    return [(entry["filename"], urldefrag(entry["url"]).url) for entry in json.loads(body)["files"]]


def _html_links(body: bytes) -> list[tuple[str, str]]:
    page = _Anchors()
    page.feed(body.decode("utf-8", "replace"))
    return page.links


class _Anchors(html.parser.HTMLParser):
    """Collects the text and target of every link."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self._target: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self._target = urldefrag(dict(attrs).get("href") or "").url

    def handle_data(self, data: str) -> None:
        if self._target is not None:
            self.links.append((data.strip(), self._target))
            self._target = None
