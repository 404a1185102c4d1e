"""Documents and collections on the command line."""

import json
from pathlib import Path

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from quintet.v1 import rag_pb2
from quintet_client.cli.files import MAX_TEXT

from tests.clients.conftest import OpenTerminal, Quintet
from tests.clients.pdf_files import write_pdf
from tests.clients.recorder import Failure
from tests.clients.small_server import SmallServer
from tests.clients.test_cli import json_lines


def test_documents(quintet_command: Quintet, in_process: Quintet, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "hours.md").write_text("# Opening hours\n\nThe office closes at six.")
    (tmp_path / "notes" / "lunch.txt").write_text("Lunch is at noon.")
    (tmp_path / "notes" / "empty.txt").write_text(" \n")
    added = quintet_command("add", "handbook", "notes", cwd=tmp_path)
    assert (added.returncode, added.stderr) == (0, "")
    assert added.stdout.splitlines() == [
        "handbook: 2 added, 1 skipped; generation 2",
        "",
        "SKIPPED          WHY",
        "notes/empty.txt  no text",
    ]
    (tmp_path / "notes" / "lunch.txt").write_text("Lunch is at one.")
    again = json.loads(in_process("add", "handbook", "notes", "--json", cwd=tmp_path).stdout)
    assert again == {
        "added_count": 0,
        "updated_count": 1,
        "unchanged_count": 1,
        "deleted_count": 0,
        "skipped": [{"path": "notes/empty.txt", "reason": "no text"}],
        "index": {"collection": "handbook", "generation": "4"},
    }

    asked = in_process("ask", "--collection", "handbook", "--top-k", "1", "When does the office close?")
    assert asked.stdout.splitlines() == [
        "# Opening hours The office closes at six. ",
        "",
        "[1] Opening hours  0.40  notes/hours.md",
        "    # Opening hours The office closes at six.",
        "",
    ]
    events = json_lines(in_process("ask", "--collection", "handbook", "--json", "lunch").stdout)
    assert events[0]["sources"]["citations"][0]["document_id"] == "notes/lunch.txt"
    assert events[-1]["done"]["grounded"] is True

    found = json_lines(in_process("retrieve", "--collection", "handbook", "--json", "lunch").stdout)
    assert [(each["document_id"], each["score"]) for each in found] == [("notes/lunch.txt", 1.0)]
    shown = in_process("retrieve", "--collection", "handbook", "lunch").stdout
    assert shown == "[1] lunch.txt  1.00  notes/lunch.txt\n    Lunch is at one.\n"


def test_a_question_without_an_answer(quintet_command: Quintet) -> None:
    done = quintet_command("ask", "nothing?")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no passage fits" in done.stderr


def test_a_model_that_does_not_know(quintet_command: Quintet, in_process: Quintet, tmp_path: Path) -> None:
    (tmp_path / "riddle.txt").write_text("I do not know the price of tea.")
    assert quintet_command("add", "riddles", str(tmp_path)).returncode == 0
    done = in_process("ask", "--collection", "riddles", "price of tea")
    assert "the model did not find the answer in the passages" in done.stderr
    assert "do not support" not in done.stderr


def test_nothing_to_add(quintet_command: Quintet, in_process: Quintet, server: SmallServer, tmp_path: Path) -> None:
    (tmp_path / "image.txt").write_bytes(b"\x00\x01")
    done = quintet_command("add", "handbook", str(tmp_path))
    assert done.returncode == 1
    assert "nothing was added" in done.stderr
    assert done.stdout.splitlines()[-1].split() == [str(tmp_path / "image.txt"), "binary"]
    missing = in_process("add", "handbook", str(tmp_path), str(tmp_path / "missing"))
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "no such file or folder" in missing.stderr
    assert server.recorder.seen == []


def test_files_of_all_kinds(in_process: Quintet, server: SmallServer, tmp_path: Path) -> None:
    papers = tmp_path / "papers"
    papers.mkdir()
    write_pdf(papers / "a.pdf", "Leave is thirty days.", title="Leave")
    (papers / "b.html").write_text("<title>Hours</title><nav>Home</nav><p>The office closes at six.")
    write_pdf(papers / "locked.pdf", "Secret.", password="x")
    for number in range(5):
        (papers / f"{number}.png").write_bytes(b"")
    done = in_process("add", "papers", "papers", cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "papers: 2 added, 6 skipped; generation 2",
        "",
        "SKIPPED            WHY",
        "papers/0.png       not text, Markdown, HTML or PDF: .png",
        "papers/1.png       not text, Markdown, HTML or PDF: .png",
        "papers/2.png       not text, Markdown, HTML or PDF: .png",
        "and 2 more         not text, Markdown, HTML or PDF: .png",
        "papers/locked.pdf  encrypted: it needs a password",
    ]
    documents = server.rag.collections["papers"]
    assert [(each.id, each.title, each.text) for each in documents.values()] == [
        ("papers/a.pdf", "Leave", "Leave is thirty days."),
        ("papers/b.html", "Hours", "The office closes at six."),
    ]
    found = in_process("retrieve", "--collection", "papers", "--where", "format=pdf", "--json", "leave office")
    assert [each["document_id"] for each in json_lines(found.stdout)] == ["papers/a.pdf"]


def test_parts_that_a_file_no_longer_has_are_removed(in_process: Quintet, server: SmallServer, tmp_path: Path) -> None:
    paragraph = "x" * (MAX_TEXT - 2) + "\n\n"

    def ids_after(paragraphs: int, said: str) -> list[str]:
        (tmp_path / "a.txt").write_text(paragraph * paragraphs)
        done = in_process("add", "notes", "a.txt", "b.txt", cwd=tmp_path)
        assert done.stdout.startswith(f"notes: {said}; generation ")
        return sorted(server.rag.collections["notes"])

    (tmp_path / "b.txt").write_text("other")
    assert ids_after(4, "5 added") == ["a.txt#1", "a.txt#2", "a.txt#3", "a.txt#4", "b.txt"]
    assert ids_after(2, "3 unchanged, 2 deleted") == ["a.txt#1", "a.txt#2", "b.txt"]
    assert ids_after(1, "1 added, 1 unchanged, 2 deleted") == ["a.txt", "b.txt"]
    assert ids_after(2, "2 added, 1 unchanged, 1 deleted") == ["a.txt#1", "a.txt#2", "b.txt"]
    (tmp_path / "a.txt").write_bytes(b"\0")
    in_process("add", "notes", "a.txt", cwd=tmp_path)
    assert sorted(server.rag.collections["notes"]) == ["a.txt#1", "a.txt#2", "b.txt"], "what cannot be read stays"


def test_a_failed_run_can_be_repeated(in_process: Quintet, server: SmallServer, tmp_path: Path) -> None:
    for number in range(130):
        (tmp_path / f"{number:03}.txt").write_text("text")
    full = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL", "the disk is full")
    server.recorder.failures["AddDocuments"].append(full)
    first = in_process("add", "notes", str(tmp_path))
    assert (first.returncode, first.stdout, first.stderr) == (1, "", "error: the disk is full\n")
    assert in_process("add", "notes", str(tmp_path / "000.txt")).returncode == 0
    server.recorder.failures["DeleteDocuments"].append(full)
    second = in_process("add", "notes", str(tmp_path))
    assert second.returncode == 1
    said = "notes: 128 added before the failure; repeat the command to continue"
    assert second.stderr == f"{said}\nerror: the disk is full\n"
    assert in_process("add", "notes", str(tmp_path)).stdout == "notes: 2 added, 128 unchanged; generation 7\n"


def test_the_progress_bar(terminal: OpenTerminal, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    output = terminal("add", "notes", str(tmp_path), NO_COLOR="1").read_until("")
    assert "100% 1 of 1 files" in output
    assert output.endswith("\r\x1b[1A\x1b[2Knotes: 1 added; generation 2\n")


def test_owners_and_quotas(in_process: Quintet, server: SmallServer) -> None:
    server.rag.collections |= {"mine": {}, "shared": {}}
    server.rag.owners = {"mine": "acme"}
    server.rag.storage = rag_pb2.Storage(
        collection_count=1, document_count=1200, size_bytes=2_500_000, max_document_count=5000, max_size_bytes=10**7
    )
    assert in_process("collections").stdout.splitlines() == [
        "NAME    STATE  DOCUMENTS  GENERATION  OWNER",
        "mine    ready          0           0  acme",
        "shared  ready          0           0  -",
        "stored: 1,200 of 5,000 documents, 2.5 of 10.0 MB",
    ]


def test_collections(in_process: Quintet, server: SmallServer, tmp_path: Path) -> None:
    for name in ("alpha", "beta", "gamma"):
        assert in_process("collections", "create", name).stdout == f"{name}: created, empty, for rules 1-abc\n"
    twice = in_process("collections", "create", "beta")
    assert (twice.returncode, twice.stderr) == (1, "error: there is one already\n")
    for number in range(3):
        (tmp_path / f"{number}.md").write_text(f"# Title {number}")
    in_process("add", "beta", ".", cwd=tmp_path)
    assert in_process("collections").stdout.splitlines() == [
        "NAME   STATE  DOCUMENTS  GENERATION",
        "alpha  ready          0           2",
        "beta   ready          3           2",
        "gamma  ready          0           2",
    ]
    assert in_process("collections", "documents", "beta").stdout.splitlines() == [
        "ID    TITLE    CHARACTERS",
        "0.md  Title 0           9",
        "1.md  Title 1           9",
        "2.md  Title 2           9",
    ]
    assert [each["id"] for each in json_lines(in_process("collections", "documents", "beta", "--json").stdout)] == [
        "0.md",
        "1.md",
        "2.md",
    ]
    assert in_process("collections", "generations", "beta").stdout.splitlines() == [
        "GENERATION  MADE                  DOCUMENTS  PASSAGES    SIZE  BY",
        "         2  1970-01-01 00:00 UTC          3         3  1.5 MB  fold",
    ]
    assert in_process("collections", "compact", "beta").stdout == "beta: generation 2 is in files, 1.5 MB\n"
    rolled = in_process("collections", "rollback", "beta", "1")
    assert rolled.stdout == "beta: generation 3 has the documents of generation 1\n"
    assert in_process("reindex", "beta").stdout == "beta: generation 4, embedded by rules 1-abc\n"
    events = json_lines(in_process("reindex", "beta", "--json").stdout)
    assert [*events[1]] == ["progress"]
    assert [*events[-1]] == ["done"]
    assert "3 in 0 passages" in in_process("collections", "show", "beta").stdout
    unsure = in_process("collections", "delete", "beta")
    assert (unsure.returncode, unsure.stderr) == (2, "error: deleting beta cannot be undone; confirm with --yes\n")
    assert in_process("collections", "delete", "beta", "--yes").stdout == "beta: deleted\n"
    assert list(server.rag.collections) == ["alpha", "gamma"]


@pytest.mark.parametrize(("ended", "joins"), [(False, 2), (True, 1)])
def test_reindexing_is_joined_again_when_its_connection_breaks(
    in_process: Quintet, server: SmallServer, monkeypatch: pytest.MonkeyPatch, ended: bool, joins: int
) -> None:
    monkeypatch.setattr("quintet_client.cli.collections._REJOIN_SECONDS", 0)
    server.rag.collections["beta"] = {"1": rag_pb2.Document(id="1", text="text")}
    server.rag.breaks = [ended]
    done = in_process("reindex", "beta")
    assert (done.returncode, done.stdout.partition(",")[0]) == (0, "beta: generation 1")
    assert server.recorder.methods().count("Reindex") == joins


@pytest.mark.parametrize(("answer", "left"), [("y", 0), ("n", 1), ("", 1)])
def test_deleting_asks(terminal: OpenTerminal, server: SmallServer, answer: str, left: int) -> None:
    server.rag.collections["notes"] = {}
    asking = terminal("collections", "delete", "notes", NO_COLOR="1")
    asking.read_until("Delete notes with its 0 documents for good? [y/N] ")
    asking.type(f"{answer}\r")
    assert ("notes: deleted" if answer == "y" else "nothing was deleted") in asking.read_until("")
    assert len(server.rag.collections) == left


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("collections", "show"), "the following arguments are required: COLLECTION"),
        (("collections", "list", "notes"), "unrecognized arguments: notes"),
        (("collections", "rollback", "notes"), "the following arguments are required: GENERATION"),
        (("collections", "compact", "notes", "3"), "unrecognized arguments: 3"),
        (("collections", "burn", "notes"), "invalid choice: 'burn'"),
        (("retrieve", "--where", "kind", "x"), "must be KEY=VALUE, not 'kind'"),
    ],
)
def test_wrong_command_lines(in_process: Quintet, server: SmallServer, arguments: list[str], said: str) -> None:
    done = in_process(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert server.recorder.seen == []


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("kind=faq", {"equals": "faq"}),
        ("kind=", {"equals": ""}),
        ("lang=en,fr", {"anyOf": {"values": ["en", "fr"]}}),
        ('name="a,b..c"', {"equals": "a,b..c"}),
        ("year=1990..2000", {"numberRange": {"atLeast": 1990, "atMost": 2000}}),
        ("year=..2000", {"numberRange": {"atMost": 2000}}),
        ("date=2024-01..", {"textRange": {"atLeast": "2024-01"}}),
        ("to=a=b", {"equals": "a=b"}),
    ],
)
def test_conditions(in_process: Quintet, server: SmallServer, given: str, sent: dict[str, object]) -> None:
    in_process("retrieve", "--where", given, "x")
    request = server.recorder.seen[0].request
    assert MessageToDict(request)["filters"] == [{"key": given.partition("=")[0], **sent}]
