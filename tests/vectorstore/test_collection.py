"""Collections on disk: what any process writes is read, before and after folds."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.domain.errors import CollectionExists, ServerOverloaded
from server.vectorstore.admin import drop_collection, publish_collection
from server.vectorstore.layout import collection_names, generations_on_disk, locked, remove_abandoned, staging_folder
from server.vectorstore.log import LogPart, read_log
from server.vectorstore.segment import Content, write_segment
from server.vectorstore.snapshot import Snapshot
from tests.vectorstore.small_collections import add, content, documents, made, opened, parts, texts_of

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
        generation = collection.snapshot.generation
        if kind == "add":
            for text in texts:
                expected.pop(text, None)
            expected |= dict.fromkeys(texts)
            assert add(collection, *texts) == generation + 1
        elif kind == "remove":
            for text in texts:
                expected.pop(text, None)
            collection.commit(tuple(texts), (), *parts())
        elif kind == "fold":
            assert collection.fold().generation == generation
            assert collection.snapshot.log_count == 0
        else:
            collection = opened(index)
            assert (collection.snapshot.generation, collection.faults) == (generation, [])
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
    collection.commit(("a", "ccc"), documents("dddd"), *parts("dddd"))
    add(collection, *(f"many {number}" for number in range(200)))
    collection.fold()
    assert [document.text for document in before.content().documents] == ["a", "bb", "ccc"]
    assert len(texts_of(collection)) == 202


def test_the_last_three_generations_and_their_logs_are_kept(tmp_path: Path) -> None:
    collection = made(tmp_path)
    for number in range(5):
        add(collection, f"text {number}")
        collection.fold()
    folder = tmp_path / "notes"
    assert generations_on_disk(folder) == [3, 4, 5]
    assert generations_on_disk(folder, logs=True) == [3, 4, 5]
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_generation_that_was_never_current_is_not_served(tmp_path: Path) -> None:
    collection = made(tmp_path, "one")
    add(collection, "two")
    collection.fold()
    (tmp_path / "notes" / "current").write_text("0\n")  # as if killed before the pointer moved
    again = opened(tmp_path)
    assert (texts_of(again), again.faults, again.snapshot.segment.info.generation) == (["one", "two"], [], 0)
    again.fold()
    assert opened(tmp_path).snapshot.segment.info.generation == 1


def test_writes_during_a_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = made(tmp_path, "one")
    add(collection, "two")

    def busy(*args: Any, **kwargs: Any) -> None:
        write_segment(*args, **kwargs)
        other = opened(tmp_path)  # another process
        assert add(other, "three") == 2
        assert add(collection, "four") == 3

    seen: list[int] = []

    def watched(path: Path, start: int, *known: Any) -> LogPart:
        seen.append(collection.snapshot.generation)  # as a search would in the middle of it
        return read_log(path, start, *known)

    monkeypatch.setattr("server.vectorstore.collection.write_segment", busy)
    monkeypatch.setattr("server.vectorstore.log.read_log", watched)
    assert collection.fold().generation == 3
    assert (seen, seen[-1]) == (sorted(seen), 3)
    assert (collection.snapshot.segment.info.generation, collection.snapshot.log_count) == (1, 2)
    for each in (collection, opened(tmp_path)):
        assert texts_of(each) == ["one", "two", "three", "four"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    collection = made(tmp_path, "one")
    folder = tmp_path / "notes"
    for left in (folder / ".half", tmp_path / ".half"):
        left.mkdir()
        (left / "vectors.npy").write_bytes(b"half")
    (folder / ".current.123").write_text("7")
    with staging_folder(folder) as at_work:
        add(collection, "two")
        collection.fold()
        remove_abandoned(tmp_path)
        assert sorted(path.name for path in folder.glob(".*")) == [at_work.name]
    assert list(folder.glob(".*")) == list(tmp_path.glob(".*")) == []


def test_coming_and_going(tmp_path: Path) -> None:
    made(tmp_path, "one")
    with pytest.raises(CollectionExists):
        made(tmp_path)
    assert collection_names(tmp_path) == ["notes"]
    drop_collection(tmp_path, "notes")
    assert list(tmp_path.iterdir()) == []


def test_publishing_again_goes_on_counting(tmp_path: Path) -> None:
    for text in ("one", "two"):
        publish_collection(tmp_path, "notes", content(text))
    assert (texts_of(opened(tmp_path)), opened(tmp_path).snapshot.generation) == (["two"], 2)


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "Notes", "a/b", "a" * 64])
def test_names_cannot_leave_the_index(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        publish_collection(tmp_path, name, content())


def test_replacing_begins_with_what_was_written_last(tmp_path: Path) -> None:
    collection = made(tmp_path, "one")
    add(opened(tmp_path), "two")  # another process

    def replaced(before: Snapshot) -> Content:
        texts = [document.text for document in before.content().documents]
        with pytest.raises(ServerOverloaded, match="another process is writing"), locked(tmp_path / "notes", wait=0):
            pass
        assert opened(tmp_path).snapshot.generation == 1  # it can be read
        return content(*texts, "new")

    assert collection.replace(replaced, "reindex").generation == 2
    add(collection, "three")
    assert texts_of(opened(tmp_path)) == ["one", "two", "new", "three"]
    assert list((tmp_path / "notes").glob(".*")) == []
