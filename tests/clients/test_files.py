"""Finding files and making documents of them."""

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quintet_client.cli.failures import UsageError
from quintet_client.cli.files import MAX_TEXT, collect, documents_of
from quintet_client.cli.parsers import Unusable
from quintet_client.inputs import BATCH_BYTES, MAX_DOCUMENTS, Document, imports


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def documents(*paths: str | Path) -> dict[str, Document]:
    found: dict[str, Document] = {}
    for file in collect([str(path) for path in paths])[0]:
        with contextlib.suppress(Unusable):
            found |= {document["id"]: document for document in documents_of(file)}
    return found


def reasons(*paths: str | Path) -> dict[str, str]:
    files, skipped = collect([str(path) for path in paths])
    found = {Path(each.path).name: each.reason for each in skipped}
    for file in files:
        try:
            documents_of(file)
        except Unusable as error:
            found[os.fsencode(file.path.name).decode(errors="replace")] = str(error)
    return found


def test_folders_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["docs/b.md", "docs/a/1.TXT", "docs/a/2.markdown", "docs/.git/x.md", "docs/.hidden.md", "docs/run.py"]
    write(tmp_path, dict.fromkeys(names, "text"))
    (tmp_path / "docs/a/loop").symlink_to(tmp_path / "docs")
    assert list(documents("docs")) == ["docs/a/1.TXT", "docs/a/2.markdown", "docs/b.md"]
    assert reasons("docs") == {"run.py": "not text, Markdown, HTML or PDF: .py"}
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


def test_names_that_cannot_be_ids(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("text")
    deep = tmp_path.joinpath(*["folder-of-some-length"] * 10)
    write(deep, {"a.txt": "text"})
    found = reasons(tmp_path)
    assert found["caf\ufffd.txt"] == "its name is not UTF-8"
    assert "at most 200 are allowed" in found["a.txt"]


def test_the_longest_text_that_is_one_document(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "\ufeff" + "🎉" * MAX_TEXT})
    assert documents(tmp_path)[f"{tmp_path.name}/a.txt"]["text"] == "🎉" * MAX_TEXT


def test_longer_texts_are_several_documents(tmp_path: Path) -> None:
    paragraph = "x" * (MAX_TEXT // 2) + "\n\n"
    write(tmp_path, {"a.md": "# Long\n\n" + paragraph * 3})
    found = documents(tmp_path)
    name = f"{tmp_path.name}/a.md"
    assert list(found) == [f"{name}#1", f"{name}#2", f"{name}#3"]
    text = (tmp_path / "a.md").read_text()
    for document in found.values():
        start = int(document["metadata"]["start"])
        assert text[start : start + len(document["text"])] == document["text"]
        assert document["title"] == "Long"
        assert document["metadata"]["file"] == name


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        ("a.md", "# Title", "Title"),
        ("a.md", "no heading", "a.md"),
        ("a.md", "# " + "x" * 400, "x" * 300),
        ("a.txt", "# not a heading", "a.txt"),
        ("a.html", "<title>Page</title>text", "Page"),
    ],
)
def test_titles(tmp_path: Path, name: str, text: str, title: str) -> None:
    write(tmp_path, {name: text})
    document = documents(tmp_path)[f"{tmp_path.name}/{name}"]
    assert document["title"] == title
    assert document["metadata"] == {"file": f"{tmp_path.name}/{name}", "format": name.partition(".")[2]}


def test_missing_paths_are_rejected_first(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "text"})
    with pytest.raises(UsageError, match="no such file or folder"):
        collect([str(tmp_path), str(tmp_path / "missing")])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 80_000), max_size=150))
def test_imports_fit_into_requests(sizes: list[int]) -> None:
    given_documents: list[Document] = [{"id": str(n), "text": "x" * size} for n, size in enumerate(sizes)]
    requests = list(imports("notes", given_documents))
    assert [each.id for request in requests for each in request.documents] == [each["id"] for each in given_documents]
    assert [request.collection for request in requests] == ["notes", *[""] * (len(requests) - 1)]
    for request in requests:
        assert len(request.documents) <= MAX_DOCUMENTS
        assert len(request.documents) == 1 or request.ByteSize() < 2 * BATCH_BYTES
