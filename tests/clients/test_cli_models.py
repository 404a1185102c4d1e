"""`quintet load`, `unload`, `reload`, `alias` and `watch`."""

from quintet.v1 import model_pb2

from tests.clients.conftest import Quintet
from tests.clients.small_server import SmallServer
from tests.clients.test_cli import json_lines


def test_states_are_printed(in_process: Quintet) -> None:
    assert in_process("unload", "house-prices").stdout == "house-prices: unloaded  1-abc\n"
    assert in_process("load", "house-prices").stdout == "house-prices: ready  1-abc\n"
    assert in_process("reload", "topics").stdout == "topics: ready\n"


def test_an_alias_is_moved(in_process: Quintet, server: SmallServer) -> None:
    done = in_process("alias", "house-prices", "current", "previous", "--force")
    assert (done.returncode, done.stdout) == (0, "house-prices: ready  1-abc  current previous\n")
    request = server.recorder.seen[-1].request
    assert isinstance(request, model_pb2.SetAliasRequest)
    assert (request.name, request.alias, request.target, request.force) == ("house-prices", "current", "previous", True)
    assert in_process("alias", "house-prices", "stable", "1-abc").returncode == 2


def test_watching_ends_with_the_server(in_process: Quintet) -> None:
    done = in_process("watch")
    assert done.stdout.splitlines() == [
        "house-prices: ready  1-abc",
        *["topics: failed", "  the artefact is missing; run: make models"] * 2,
    ]
    assert (done.returncode, done.stderr) == (1, "the server stops\n")
    names = [model["ref"]["name"] for model in json_lines(in_process("watch", "--json").stdout)]
    assert names == ["house-prices", "topics", "topics"]
