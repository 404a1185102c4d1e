"""The package index is the one that pip is configured with, on a server or in a folder."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.index_server import IndexServer, wheel
from training.fetch.cache import Cache
from training.fetch.downloads import Downloader
from training.fetch.fetcher import Fetcher
from training.fetch.hub import Hub
from training.fetch.lock import Input
from training.fetch.package_index import PackageIndex, PipSettings, pip_settings
from training.progress import PlainProgress

CONFIGURATION = """
[global]
index-url = https://global.example/simple
extra-index-url =
    https://first.example/simple
    https://second.example/simple
cert = /certificates.pem
proxy = http://proxy.example:3128
[download]
index-url = https://download.example/simple
"""


def test_settings_come_from_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.conf").write_text(CONFIGURATION)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT", "PIP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    extra = ("https://first.example/simple", "https://second.example/simple")
    rest = ("/certificates.pem", "http://proxy.example:3128")
    assert pip_settings() == PipSettings(("https://download.example/simple", *extra), *rest)
    monkeypatch.setenv("PIP_INDEX_URL", "https://environment.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    assert pip_settings() == PipSettings(("https://environment.example/simple",), *rest)


def test_without_configuration_it_is_the_index_of_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    (first, *_) = pip_settings().index_urls
    assert re.fullmatch(r"https://\S+/simple", first)


def test_an_index_may_be_a_folder_beside_others(
    index: IndexServer, cache: Cache, lock: Callable[..., Input], tmp_path: Path
) -> None:
    distribution = index.add("p", "p 1.whl", wheel({"w": b"w"}))
    (tmp_path / "simple" / "p").mkdir(parents=True)
    (tmp_path / "simple" / "p" / "index.html").write_text(
        "<a class='x' href='../../files/p%201.whl#sha256=0'>p 1.whl</a>"
    )
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "p 1.whl").write_bytes(index.files.pop("p 1.whl"))
    index.packages.clear()
    downloader = Downloader(pause_seconds=0.01)
    packages = PackageIndex(downloader, (f"{index.url}/simple", f"file://{tmp_path}/simple"))
    item = lock({"w": b"w"}, {"distributions": [distribution]})
    Fetcher(cache, downloader, Hub("http://127.0.0.1:9", timeout=0.1), packages, PlainProgress()).fetch(item)
    assert cache.verified(item.files[0]).read_bytes() == b"w"
    assert index.requests == [("/simple/p/", "")]
