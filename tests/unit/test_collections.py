"""Collections on disk: what is written is read; whatever happens to the writer, the last good generation is served."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import ModelUnavailable, ServerOverloaded
from server.stores.collections import collection_names, newest_number, open_collection, write_collection
from server.stores.generation import Content, DocumentRecord, EmbedderRecord

EMBEDDER = EmbedderRecord("embedder", "1", "sha256:0")


def content_of(*texts: str) -> Content:
    """One passage a text; vectors are unit vectors of 3 dimensions."""
    vectors = np.zeros((len(texts), 3), dtype=np.float32)
    vectors[:, 0] = 1.0
    return Content(
        embedder=EMBEDDER,
        documents=tuple(DocumentRecord(str(i), text, metadata={"n": str(i)}) for i, text in enumerate(texts)),
        passages=np.array([(i, 0, len(text)) for i, text in enumerate(texts)], dtype=np.int32).reshape(-1, 3),
        vectors=vectors,
    )


def texts_of(index: Path, name: str = "notes") -> tuple[str, ...]:
    return tuple(document.text for document in open_collection(index, name).content.documents)


def test_read_what_was_written(tmp_path: Path) -> None:
    content = content_of("a line\u2028with\rodd\nbreaks", "猫", "")
    written = write_collection(tmp_path, "notes", content)
    read = open_collection(tmp_path, "notes")
    assert (read.number, read.newest, read.updated, read.size_bytes) == (1, 1, written.updated, written.size_bytes)
    assert read.content.documents == content.documents
    assert read.content.embedder == EMBEDDER
    assert np.array_equal(read.content.passages, content.passages)
    assert np.array_equal(read.content.vectors, content.vectors)
    assert collection_names(tmp_path) == ["notes"]


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=4))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    index = tmp_path_factory.mktemp("index")
    write_collection(index, "notes", content_of(*texts))
    assert texts_of(index) == tuple(texts)


def test_last_three_generations_are_kept(tmp_path: Path) -> None:
    for number in range(1, 6):
        assert write_collection(tmp_path, "notes", content_of(f"state {number}")).number == number
    assert sorted(path.name for path in (tmp_path / "notes").iterdir()) == [
        "00000003",
        "00000004",
        "00000005",
        "current",
    ]
    assert texts_of(tmp_path) == ("state 5",)


@pytest.mark.parametrize("file", ["vectors.npy", "documents.jsonl", "passages.jsonl", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_broken_generation_falls_back(tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    write_collection(tmp_path, "notes", content_of("good"))
    write_collection(tmp_path, "notes", content_of("bad"))
    path = tmp_path / "notes" / "00000002" / file
    raw = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(raw[: len(raw) // 2] if damage == "truncate" else raw[:5] + bytes([raw[5] ^ 1]) + raw[6:])
    read = open_collection(tmp_path, "notes")
    assert (read.number, read.newest) == (1, 2)
    assert texts_of(tmp_path) == ("good",)
    assert "generation 2 is broken" in caplog.text
    assert write_collection(tmp_path, "notes", content_of("new"), replaces=2).number == 3
    assert texts_of(tmp_path) == ("new",)


def test_nothing_whole_names_the_remedy(tmp_path: Path) -> None:
    for name, remedy in (("wikipedia", "make train ONLY=wikipedia"), ("notes", "add its documents again")):
        write_collection(tmp_path, name, content_of("x"))
        (tmp_path / name / "00000001" / "vectors.npy").write_bytes(b"")
        with pytest.raises(ModelUnavailable, match=remedy):
            open_collection(tmp_path, name)


def test_lost_pointer_serves_the_newest(tmp_path: Path) -> None:
    write_collection(tmp_path, "notes", content_of("one"))
    write_collection(tmp_path, "notes", content_of("two"))
    (tmp_path / "notes" / "current").write_text("nonsense")
    assert texts_of(tmp_path) == ("two",)


def test_generation_that_was_never_current_is_not_served(tmp_path: Path) -> None:
    write_collection(tmp_path, "notes", content_of("acknowledged"))
    write_collection(tmp_path, "notes", content_of("killed before its pointer"))
    (tmp_path / "notes" / "current").write_text("1\n")
    assert texts_of(tmp_path) == ("acknowledged",)


def test_a_writer_that_missed_a_generation_is_refused(tmp_path: Path) -> None:
    write_collection(tmp_path, "notes", content_of("one"), replaces=0)
    write_collection(tmp_path, "notes", content_of("two"), replaces=1)
    with pytest.raises(ServerOverloaded, match="changed by another process"):
        write_collection(tmp_path, "notes", content_of("stale"), replaces=1)
    assert texts_of(tmp_path) == ("two",)


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "Notes", "a/b", "a" * 64])
def test_names_cannot_leave_the_index(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        write_collection(tmp_path, name, content_of("x"))


@pytest.mark.parametrize("texts", ["['x' * 10_000]", "['x'] * 1000"], ids=["documents", "vectors"])
def test_full_disk_keeps_the_old_generation(tmp_path: Path, texts: str) -> None:
    """A file-size limit breaks the write in the middle as a full disk does; only the errno differs."""
    write_collection(tmp_path, "notes", content_of("old"))
    script = """
        import errno, resource, signal, sys
        from pathlib import Path
        import server.stores.collections as store
        from server.errors import StorageFull
        from tests.unit.test_collections import content_of
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store.errno.ENOSPC = errno.EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            store.write_collection(Path(sys.argv[1]), "notes", content_of(*eval(sys.argv[2])))
        except StorageFull as error:
            sys.exit(0 if "the disk is full" in error.message else 2)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script), tmp_path, texts], check=False).returncode == 0
    assert texts_of(tmp_path) == ("old",)
    assert sorted(path.name for path in (tmp_path / "notes").iterdir()) == ["00000001", "current"]


def test_kill_at_any_moment_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from server.stores.collections import write_collection
        from tests.unit.test_collections import content_of
        while True:
            generation = write_collection(Path(sys.argv[1]), "notes", content_of(*["text"] * 50))
            print(generation.number, flush=True)
    """
    acknowledged = 0
    for lines in (1, 3, 7):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), tmp_path], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            for _ in range(lines):
                acknowledged = int(writer.stdout.readline())
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
        assert open_collection(tmp_path, "notes").number >= acknowledged
        assert len(texts_of(tmp_path)) == 50
    assert write_collection(tmp_path, "notes", content_of("after")).number > acknowledged
    assert [path for path in (tmp_path / "notes").iterdir() if path.name.startswith(".")] == []
    assert newest_number(tmp_path, "notes") > acknowledged
