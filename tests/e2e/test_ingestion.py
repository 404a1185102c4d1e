"""From files to answers: the real command and client against a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from quintet_client import AsyncQuintetClient, QuintetClient, errors
from quintet_client.cli import main

from tests.clients.pdf_files import write_pdf
from tests.conftest import ServerProcess


@pytest.fixture
def client(server: ServerProcess) -> Iterator[QuintetClient]:
    with QuintetClient(server.address) as made:
        yield made
        for collection in made.list_collections(page_size=100).collections:
            if collection.index.collection == "shelf":
                made.delete_collection("shelf")


def test_files_are_found_by_what_they_say(
    server: ServerProcess, client: QuintetClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    write_pdf(shelf / "leave.pdf", "Everyone has thirty days of paid leave a year.", title="Leave")
    (shelf / "hours.html").write_text("<title>Hours</title><nav>Home</nav><p>The office closes at six.")
    add = ("add", "shelf", str(shelf), "--address", server.address)
    assert main(add) == 0
    assert capsys.readouterr().out.startswith("shelf: 2 added; generation ")
    assert main(add) == 0
    assert capsys.readouterr().out.startswith("shelf: 2 unchanged; generation ")
    best = client.retrieve("How many days of paid leave do I have?", collection="shelf").passages[0]
    assert (best.document_id, best.title) == ("shelf/leave.pdf", "Leave")
    where = {"format": "html"}
    found = client.retrieve("How many days of paid leave do I have?", collection="shelf", where=where).passages
    assert [passage.text for passage in found] == ["The office closes at six."]
    assert main(("reindex", "shelf", "--address", server.address)) == 0
    assert main(("collections", "generations", "shelf", "--address", server.address)) == 0
    assert capsys.readouterr().out.splitlines()[2].endswith("reindex")


async def test_bulk_is_there_when_it_says_so(server: ServerProcess, client: QuintetClient) -> None:
    async with AsyncQuintetClient(server.address) as async_client:
        written = await async_client.import_documents(
            "shelf", ({"id": str(n), "text": f"Note {n}.", "metadata": {"n": str(n)}} for n in range(150))
        )
        assert written.added_count == 150
        found = await async_client.retrieve(
            "note", collection="shelf", where={"n": (10, 12)}, min_generation=written.index.generation
        )
        assert {passage.document_id for passage in found.passages} == {"10", "11", "12"}
        listed = await async_client.list_documents("shelf", page_size=1000)
        assert len(listed.documents) == 150
    with pytest.raises(errors.CollectionExists):
        client.create_collection("shelf")
    with pytest.raises(errors.GenerationNotFound):
        client.rollback("shelf", 999)
