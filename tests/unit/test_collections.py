"""Collections on disk: what is written is read; whatever happens to the files, the last good state is served."""

import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.errors import CollectionBroken, CollectionExists, StorageFull
from server.stores.collection import Collection
from server.stores.collections import create_collection, drop_collection, write_collection
from server.stores.generation import Content, DocumentRecord, EmbedderRecord, no_index
from server.stores.home import aside, collection_names, numbers, remove_remains
from server.stores.log import LogPart, Write, append, read_log

EMBEDDER = EmbedderRecord("embedder", "1", "sha256:0")


def records(*texts: str) -> tuple[DocumentRecord, ...]:
    """Documents whose ids are their texts."""
    return tuple(DocumentRecord(text, text, metadata={"n": str(len(text))}) for text in texts)


def parts(*texts: str) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """One passage a text; vectors of 3 dimensions that tell the texts apart."""
    passages = np.array([(i, 0, len(text)) for i, text in enumerate(texts)], np.int32).reshape(-1, 3)
    return passages, np.array([(len(text), 1, 0) for text in texts], np.float32).reshape(-1, 3)


def made(index: Path, *texts: str) -> Collection:
    """A new collection."""
    return create_collection(index, "notes", Content(EMBEDDER, records(*texts), *parts(*texts)), no_index)


def add(collection: Collection, *texts: str) -> int:
    return collection.commit((), records(*texts), *parts(*texts)).number


def opened(index: Path) -> Collection:
    return Collection(index / "notes", no_index)


def texts_of(collection: Collection) -> list[str]:
    """Texts in their order, after checking that passages and vectors are theirs."""
    content = collection.snapshot.content()
    texts = [document.text for document in content.documents]
    assert not isinstance(content.vectors, np.ndarray)
    expected = parts(*texts)
    assert np.array_equal(content.passages, expected[0])
    assert np.array_equal(np.concatenate([expected[1][:0], *content.vectors.parts]), expected[1])
    assert (collection.snapshot.document_count, collection.snapshot.passage_count) == (len(texts), len(texts))
    return texts


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.text(st.characters(codec="utf-8"), max_size=3), max_size=3, unique=True)),
        st.tuples(st.just("remove"), st.lists(st.text(st.characters(codec="utf-8"), max_size=2), max_size=3)),
        st.tuples(st.just("fold"), st.just([])),
        st.tuples(st.just("reopen"), st.just([])),
    ),
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
def test_it_behaves_like_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, list[str]]]
) -> None:
    index = tmp_path_factory.mktemp("index")
    collection = made(index)
    expected: dict[str, None] = {}
    for kind, texts in steps:
        number = collection.snapshot.number
        if kind == "add":
            for text in texts:
                expected.pop(text, None)
            expected |= dict.fromkeys(texts)
            assert add(collection, *texts) == number + 1
        elif kind == "remove":
            for text in texts:
                expected.pop(text, None)
            collection.commit(tuple(texts), (), *parts())
        elif kind == "fold":
            assert collection.fold().number == number
            assert collection.snapshot.log_count == 0
        else:
            collection = opened(index)
            assert (collection.snapshot.number, collection.faults) == (number, [])
        assert texts_of(collection) == list(expected)
        for text in expected:
            found = collection.find(text)
            assert found is not None
            assert found[0].text == text
        assert collection.find("never") is None


def test_snapshots_stay_as_they_are(tmp_path: Path) -> None:
    collection = made(tmp_path, "a", "bb")
    add(collection, "ccc")
    before = collection.snapshot
    collection.commit(("a", "ccc"), records("dddd"), *parts("dddd"))
    add(collection, *(f"many {number}" for number in range(200)))
    collection.fold()
    assert [document.text for document in before.content().documents] == ["a", "bb", "ccc"]
    assert len(texts_of(collection)) == 202


def test_the_last_three_generations_and_their_logs_are_kept(tmp_path: Path) -> None:
    collection = made(tmp_path)
    for number in range(5):
        add(collection, f"text {number}")
        collection.fold()
    home = tmp_path / "notes"
    assert numbers(home) == [3, 4, 5]
    assert numbers(home, logs=True) == [3, 4, 5]
    assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []


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
    assert again.snapshot.number == 2
    assert again.faults[0].startswith("generation 1 is broken")
    assert add(again, "fourth") == 3
    again.fold()
    healed = opened(tmp_path)
    assert (healed.faults, texts_of(healed)) == ([], ["first", "second", "third", "fourth"])


def hurt(path: Path, damage: str) -> None:
    raw = path.read_bytes()
    middle = len(raw) // 2
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(
            raw[:middle] if damage == "truncate" else raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]
        )


def test_what_cannot_be_restored_is_said(tmp_path: Path) -> None:
    """A rolled back state is in no log: if its files break, the state before is served, and numbers still grow."""
    collection = made(tmp_path, "first")
    add(collection, "second")
    collection.rollback(0)
    add(collection, "third")
    assert (texts_of(collection), collection.snapshot.number) == (["first", "third"], 3)
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
    write_collection(tmp_path, "notes", Content(EMBEDDER, records("new"), *parts("new")))
    assert texts_of(opened(tmp_path)) == ["new"]


def test_a_lost_pointer(tmp_path: Path) -> None:
    add(made(tmp_path, "one"), "two")
    (tmp_path / "notes" / "current").write_text("nonsense")
    again = opened(tmp_path)
    assert texts_of(again) == ["one", "two"]
    assert again.faults == ["the pointer is missing or broken"]
    again.fold()
    assert opened(tmp_path).faults == []


def test_a_generation_that_was_never_current_is_not_served(tmp_path: Path) -> None:
    collection = made(tmp_path, "one")
    add(collection, "two")
    collection.fold()
    (tmp_path / "notes" / "current").write_text("0\n")  # as if killed before the pointer moved
    again = opened(tmp_path)
    assert (texts_of(again), again.faults, again.snapshot.base.number) == (["one", "two"], [], 0)
    again.fold()
    assert opened(tmp_path).snapshot.base.number == 1


def test_writes_during_a_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = made(tmp_path, "one")
    add(collection, "two")

    def busy(vectors: object, file: object, before: object) -> None:
        other = opened(tmp_path)  # another process
        assert add(other, "three") == 2
        assert add(collection, "four") == 3

    seen: list[int] = []

    def watched(path: Path, start: int = 0) -> LogPart:
        seen.append(collection.snapshot.number)  # as a search would in the middle of it
        return read_log(path, start)

    collection._indexer = busy
    monkeypatch.setattr("server.stores.reader.read_log", watched)
    assert collection.fold().number == 3
    assert (seen, seen[-1]) == (sorted(seen), 3)
    assert (collection.snapshot.base.number, collection.snapshot.log_count) == (1, 2)
    for each in (collection, opened(tmp_path)):
        assert texts_of(each) == ["one", "two", "three", "four"]


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
    assert f"ended with {cut} bytes of no whole write" in again.faults[0]
    assert path.stat().st_size == whole
    assert add(again, "next") == 2
    assert texts_of(opened(tmp_path)) == ["acknowledged", "next"]


def test_a_damaged_record_is_left_out_and_told(tmp_path: Path) -> None:
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
    path = tmp_path_factory.mktemp("log") / "log"
    end = 0
    for number in (1, 2, 3):
        text = f"text {number}"
        end = append(path, end, Write(number, datetime.now(UTC), ("x",), records(text), *parts(text)))
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    part = read_log(path)
    found = [(write.number, write.documents, write.removed) for write in part.writes]
    assert len(found) == 2
    assert all(entry == (entry[0], records(f"text {entry[0]}"), ("x",)) for entry in found)
    assert bool(part.faults) != bool(part.torn)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    collection = made(tmp_path, "one")
    home = tmp_path / "notes"
    for left in (home / ".half", tmp_path / ".half"):
        left.mkdir()
        (left / "vectors.npy").write_bytes(b"half")
    (home / ".current.123").write_text("7")
    with aside(home) as at_work:
        add(collection, "two")
        collection.fold()
        remove_remains(tmp_path)
        assert sorted(path.name for path in home.glob(".*")) == [at_work.name]
    assert list(home.glob(".*")) == list(tmp_path.glob(".*")) == []


def test_coming_and_going(tmp_path: Path) -> None:
    made(tmp_path, "one")
    with pytest.raises(CollectionExists):
        made(tmp_path)
    assert collection_names(tmp_path) == ["notes"]
    drop_collection(tmp_path, "notes")
    assert list(tmp_path.iterdir()) == []


def test_publishing_again_goes_on_counting(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_collection(tmp_path, "notes", Content(EMBEDDER, records(text), *parts(text)))
    assert (texts_of(opened(tmp_path)), opened(tmp_path).snapshot.number) == (["two"], 2)


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "Notes", "a/b", "a" * 64])
def test_names_cannot_leave_the_index(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        write_collection(tmp_path, name, Content(EMBEDDER, (), *parts()))


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
        create_collection(index, "others", Content(EMBEDDER, records("y" * 400_000), *parts("y")), no_index)
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
        from tests.unit.test_collections import full_disk
        full_disk(Path("{tmp_path}"))'
    """
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", tmp_path], check=False).returncode:
        pytest.skip("this system lets nobody mount a file system in a namespace")
    command = textwrap.dedent(script).replace("\n        ", "\n")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, check=False)
    assert "nothing was lost" in done.stdout, done.stderr
