"""Whatever happens to the files of a collection, the last good state is served, and what is lost is reported."""

import shutil
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.domain.errors import CollectionBroken, StorageFull
from server.vectorstore.admin import create_collection, publish_collection
from server.vectorstore.damage import kept_damage
from server.vectorstore.layout import collection_names
from server.vectorstore.log import Log, read_log
from server.vectorstore.records import Write
from server.vectorstore.segment import kept_generations
from tests.vectorstore.small_collections import add, content, documents, made, opened, parts, texts_of

FILES = sorted(
    f"{name}"
    for name in (
        *("documents.ends.npy", "documents.utf8", "ids.ends.npy", "ids.rows.npy", "ids.utf8", "manifest.json"),
        *("passages.npy", "postings.ends.npy", "postings.npy", "terms.ends.npy", "terms.numbers.npy", "terms.utf8"),
        "vectors.npy",
    )
)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_broken_generation_loses_nothing(tmp_path: Path, file: str, damage: str) -> None:
    """The generation before it and the logs have everything that was acknowledged."""
    collection = made(tmp_path, "first")
    add(collection, "second")
    collection.fold()
    add(collection, "third")
    assert sorted(path.name for path in (tmp_path / "notes" / "00000001").iterdir()) == FILES
    hurt(tmp_path / "notes" / "00000001" / file, damage)
    again = opened(tmp_path)
    assert texts_of(again) == ["first", "second", "third"]
    assert again.snapshot.generation == 2
    assert again.faults[0].startswith("generation 1 is broken")
    assert add(again, "fourth") == 3
    again.fold()
    healed = opened(tmp_path)
    assert (healed.faults, texts_of(healed)) == ([], ["first", "second", "third", "fourth"])


def test_what_a_killed_rollback_left_never_counts(tmp_path: Path) -> None:
    """It was installed, but the pointer had not moved; then its number became that of a write."""
    collection = made(tmp_path, "first")
    add(collection, "second")
    collection.fold()
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "notes", copy / "notes")
    left = opened(copy).rollback(0)
    shutil.copytree(copy / "notes" / f"{left.generation:08}", tmp_path / "notes" / f"{left.generation:08}")

    again = opened(tmp_path)
    assert texts_of(again) == ["first", "second"]
    assert add(again, "third") == left.generation
    add(again, "fourth")
    again.fold()
    assert [each.generation for each in kept_generations(again.folder)] == [3, 1, 0]
    hurt(tmp_path / "notes" / "00000003" / "manifest.json", "remove")
    assert texts_of(opened(tmp_path)) == ["first", "second", "third", "fourth"]


def hurt(path: Path, damage: str) -> None:
    raw = path.read_bytes()
    middle = len(raw) // 2
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(
            raw[:middle] if damage == "truncate" else raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]
        )


def test_what_cannot_be_restored_is_reported(tmp_path: Path) -> None:
    """A rolled back state is in no log: if its files break, the state before is served, and numbers still grow."""
    collection = made(tmp_path, "first")
    add(collection, "second")
    collection.rollback(0)
    add(collection, "third")
    assert (texts_of(collection), collection.snapshot.generation) == (["first", "third"], 3)
    (tmp_path / "notes" / "00000002" / "manifest.json").unlink()
    again = opened(tmp_path)
    assert texts_of(again) == ["first", "second"]
    assert "what was written after 1, up to 2 at least, is not served" in again.faults
    assert add(again, "fourth") == 4
    assert texts_of(opened(tmp_path)) == ["first", "second", "fourth"]


def test_nothing_whole(tmp_path: Path) -> None:
    made(tmp_path, "x")
    (tmp_path / "notes" / "00000000" / "vectors.npy").write_bytes(b"")
    with pytest.raises(CollectionBroken, match=r"no generation that is whole: generation 0 is broken: vectors\.npy"):
        opened(tmp_path)
    publish_collection(tmp_path, "notes", content("new"))
    assert texts_of(opened(tmp_path)) == ["new"]


def test_a_lost_pointer(tmp_path: Path) -> None:
    add(made(tmp_path, "one"), "two")
    (tmp_path / "notes" / "current").write_text("nonsense")
    again = opened(tmp_path)
    assert texts_of(again) == ["one", "two"]
    assert again.faults == ["the pointer is missing or broken"]
    again.fold()
    assert opened(tmp_path).faults == []


@pytest.mark.parametrize("cut", [1, 10, 24, 100])
def test_a_torn_end_is_cut(tmp_path: Path, cut: int) -> None:
    collection = made(tmp_path)
    add(collection, "acknowledged")
    path = tmp_path / "notes" / "00000000.log"
    whole = path.stat().st_size
    add(collection, "was being written")
    path.write_bytes(path.read_bytes()[: whole + cut])
    again = opened(tmp_path)
    assert texts_of(again) == ["acknowledged"]
    assert again.faults == [
        f"{cut} bytes at the end of 00000000.log were cut off and are kept in "
        f"00000000.log.{whole}-{whole + cut}.torn.damaged: an incomplete write that was not acknowledged, unless the "
        "file was damaged"
    ]
    assert path.stat().st_size == whole
    assert add(again, "next") == 2
    assert texts_of(opened(tmp_path)) == ["acknowledged", "next"]


def test_a_damaged_record_is_left_out_and_reported(tmp_path: Path) -> None:
    collection = made(tmp_path)
    path = tmp_path / "notes" / "00000000.log"
    for text in ("one", "two", "three"):
        add(collection, text)
    raw = path.read_bytes()
    at = raw.index(b'"two"')
    path.write_bytes(raw[:at] + b'"twi"' + raw[at + 5 :])
    again = opened(tmp_path)
    assert texts_of(again) == ["one", "three"]
    assert again.faults[1] == "writes 2 to 2 are lost"
    assert "00000000.log is damaged from byte" in again.faults[0]
    assert add(again, "four") == 4


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_damage_of_a_log_is_taken_for_a_write(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    log = Log(tmp_path_factory.mktemp("log"), 0, 3)
    for number in (1, 2, 3):
        text = f"text {number}"
        log.append(Write(number, datetime.now(UTC), ("x",), documents(text), *parts(text)))
    raw = bytearray(log.path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    log.path.write_bytes(raw)
    part = read_log(log.path)
    found = [(write.generation, write.documents, write.removed) for write in part.writes]
    assert len(found) == 2
    assert all(entry == (entry[0], documents(f"text {entry[0]}"), ("x",)) for entry in found)
    assert bool(part.bad) != bool(part.torn)


def test_the_newest_damaged_bytes_are_kept(tmp_path: Path) -> None:
    """Three of what may be missing, and one end of a write that was not acknowledged."""
    collection = made(tmp_path)
    path = tmp_path / "notes" / "00000000.log"
    for number in range(6):
        add(collection, f"text {number}")
        raw = path.read_bytes() if path.exists() else b""
        for end in (b"x" * (30 + number), b"torn"):
            path.write_bytes(raw + end)
            collection.refresh()
        collection.fold()
        path = tmp_path / "notes" / f"{collection.snapshot.generation:08}.log"
    kept = [each.name.endswith(".torn.damaged") for each in (tmp_path / "notes").glob("*.damaged")]
    assert sorted(kept) == [False, False, False, True]
    assert opened(tmp_path).faults == [
        f"damaged data are kept in {name}, to be removed by hand" for name in kept_damage(tmp_path / "notes")
    ]
    assert len(texts_of(opened(tmp_path))) == 6


def full_disk(index: Path) -> None:
    """Runs in a process of its own, on a small file system: writes and folds until it is full, then checks."""
    filler = index / ".filler"
    filler.write_bytes(bytes(100_000))
    collection = made(index, "first")
    expected = ["first"]

    def fill() -> None:
        while True:
            text = f"{len(expected)} " + "x" * 20_000
            add(collection, text)
            expected.append(text)

    with pytest.raises(StorageFull):
        fill()
    with pytest.raises(StorageFull):
        collection.fold()
    with pytest.raises(StorageFull):
        create_collection(index, "others", content("y" * 400_000))
    assert collection_names(index) == ["notes"]
    for each in (collection, opened(index)):
        assert (texts_of(each), each.faults) == (expected, [])
    filler.unlink()
    add(collection, "last")
    assert texts_of(opened(index)) == [*expected, "last"]
    print("nothing was lost")


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """On a real file system of 1 MiB, mounted in a namespace of its own."""
    script = f"""
        mount -t tmpfs -o size=1m none {tmp_path} &&
        exec {sys.executable} -c 'from pathlib import Path
        from tests.vectorstore.test_damage import full_disk
        full_disk(Path("{tmp_path}"))'
    """
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", tmp_path], check=False).returncode:
        pytest.skip("this system does not allow mounting a file system in a namespace")
    command = textwrap.dedent(script).replace("\n        ", "\n")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, check=False)
    assert "nothing was lost" in done.stdout, done.stderr
