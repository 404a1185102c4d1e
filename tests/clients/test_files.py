"""Which files become documents, and how."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quintet_client.cli.documents import MAX_BYTES, MAX_DOCUMENTS, _batches
from quintet_client.cli.failures import UsageError
from quintet_client.cli.files import Skipped, collect
from quintet_client.inputs import Document


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def documents(*paths: str | Path) -> dict[str, Document]:
    return {each["id"]: each for each in collect([str(path) for path in paths]) if not isinstance(each, Skipped)}


def reasons(*paths: str | Path) -> dict[str, str]:
    found = [each for each in collect([str(path) for path in paths]) if isinstance(each, Skipped)]
    return {Path(each.path).name: each.reason for each in found}


def test_folders_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["docs/b.md", "docs/a/1.TXT", "docs/a/2.markdown", "docs/.git/x.md", "docs/.hidden.md", "docs/run.py"]
    write(tmp_path, dict.fromkeys(names, "text"))
    (tmp_path / "docs/a/loop").symlink_to(tmp_path / "docs")
    assert list(documents("docs")) == ["docs/a/1.TXT", "docs/a/2.markdown", "docs/b.md"]
    assert list(documents("docs/run.py")) == ["docs/run.py"], "what is named is taken, whatever it is called"


def test_ids_do_not_depend_on_where_the_command_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"project/docs/a.md": "text", "elsewhere/b.md": "text"})
    monkeypatch.chdir(tmp_path / "project")
    ids = {"docs/a.md", "elsewhere/b.md"}
    assert set(documents("docs", "../elsewhere")) == ids
    assert set(documents(tmp_path / "project" / "docs", tmp_path / "elsewhere")) == ids
    assert set(documents(".")) == {"docs/a.md"}


def test_a_file_named_twice_is_added_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"here/docs/a.md": "one", "there/docs/a.md": "other"})
    monkeypatch.chdir(tmp_path / "here")
    assert documents("docs", "../there/docs")["docs/a.md"]["text"] == "one"
    assert reasons("docs", "docs/a.md", "../there/docs") == {"a.md": "there was another docs/a.md"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "empty"),
        (" \n\u00a0\u200b\ufeff", "empty"),
        (b"text\x00text", "binary"),
        ("text".encode("utf-16"), "binary"),
        (b"caf\xe9", "not UTF-8 (byte 3)"),
        ("é" * 200_001, "too long: 200001 characters; at most 200000 are allowed"),
        (b"x" * 800_004, "too long: 800004 bytes; at most 200000 characters are allowed"),
    ],
)
def test_what_is_left_out(tmp_path: Path, content: str | bytes, reason: str) -> None:
    write(tmp_path, {"a.txt": content, "b.txt": "text"})
    assert reasons(tmp_path) == {"a.txt": reason}
    assert len(documents(tmp_path)) == 1


def test_names_that_cannot_be_ids(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("text")
    deep = tmp_path.joinpath(*["folder-of-some-length"] * 10)
    write(deep, {"a.txt": "text"})
    os.mkfifo(tmp_path / "pipe.txt")
    found = reasons(tmp_path)
    assert found["caf\ufffd.txt"] == "its name is not UTF-8"
    assert "at most 200 are allowed" in found["a.txt"]
    assert found["pipe.txt"] == "not a file"


def test_the_longest_text_that_fits(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "\ufeff" + "🎉" * 200_000})
    assert documents(tmp_path)[f"{tmp_path.name}/a.txt"]["text"] == "🎉" * 200_000


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        ("a.md", "intro\n\n## The  title ##\n# Later", "The  title"),
        ("a.md", "```sh\n# a comment\n```\n# Title", "Title"),
        ("a.md", "#hashtag\n\ntext", "a.md"),
        ("a.md", "# " + "x" * 400, "x" * 300),
        ("a.txt", "# not a heading", "a.txt"),
    ],
)
def test_titles(tmp_path: Path, name: str, text: str, title: str) -> None:
    write(tmp_path, {name: text})
    assert documents(tmp_path)[f"{tmp_path.name}/{name}"].get("title") == title


def test_what_does_not_exist_ends_it_before_it_begins(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "text"})
    with pytest.raises(UsageError, match="no such file or folder"):
        collect([str(tmp_path), str(tmp_path / "missing")])


@settings(deadline=None)
@given(st.lists(st.integers(1, 80_000), max_size=300))
def test_batches_fit_into_requests(sizes: list[int]) -> None:
    given_documents: list[Document] = [{"id": str(n), "text": "x" * size} for n, size in enumerate(sizes)]
    batches = list(_batches(iter(given_documents)))
    assert [each for batch in batches for each in batch] == given_documents
    for batch in batches:
        assert 1 <= len(batch) <= MAX_DOCUMENTS
        assert sum(len(each["text"]) for each in batch) <= MAX_BYTES
