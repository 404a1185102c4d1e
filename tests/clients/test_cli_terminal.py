"""The command on a terminal: widths, colours, conversations, Ctrl-C."""

import re
import time
from typing import Any

import grpc
import pytest
from rich.cells import cell_len

from tests.clients.conftest import OpenTerminal
from tests.clients.recorder import Failure
from tests.clients.small_server import SmallServer

COLOURS = re.compile(r"\x1b\[\d+m")


@pytest.mark.parametrize("columns", [40, 80])
def test_tables_fit(terminal: OpenTerminal, columns: int) -> None:
    output = terminal("classify", "long " * 30, "日本語" * 20, "I love it", columns=columns).read_until("")
    lines = COLOURS.sub("", output).splitlines()
    assert len([line for line in lines if line.startswith("0.750")]) == 3
    assert max(cell_len(line) for line in lines if not line.startswith("warning")) == columns
    assert [line[-1] for line in lines[1:3]] == ["…", "…"]


def test_colours(terminal: OpenTerminal) -> None:
    coloured = terminal("models").read_until("")
    assert "\x1b[32mready\x1b[0m" in coloured
    assert "\x1b[31mfailed\x1b[0m" in coloured
    plain = terminal("models", NO_COLOR="1").read_until("")
    assert plain == COLOURS.sub("", coloured)


def test_control_characters_are_removed(terminal: OpenTerminal) -> None:
    output = terminal("chat", "red \x1b[31m, \x9b31m, title \x1b]0;x\x07 end", NO_COLOR="1").read_until("")
    assert "red [31m, 31m, title ]0;x end" in output
    assert "\x1b" not in output


def test_a_conversation(terminal: OpenTerminal, server: SmallServer) -> None:
    talk = terminal("chat", "--system", "Be brief.", NO_COLOR="1")
    talk.read_until("> ")
    talk.type("hello\r")
    assert "You said: hello \nrules 1-abc · " in talk.read_until("> ")
    talk.type("more\r")
    talk.read_until("> ")
    server.recorder.failures["StreamChat"].append(
        Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_OVERLOADED", "full")
    )
    talk.type("lost\r")
    assert "error: full\n" in talk.read_until("> ")
    talk.type("wait for me\r")
    talk.read_until("You ")
    talk.interrupt()
    assert "stopped; the question is not part of the conversation" in talk.read_until("> ")
    talk.type("third\r")
    talk.read_until("> ")
    talk.type("/new\r")
    talk.read_until("> ")
    talk.type("fresh\r")
    talk.read_until("> ")
    talk.type("\x04")
    assert talk.wait() == 0
    requests: list[Any] = [call.request for call in server.recorder.seen if call.method == "StreamChat"]
    conversations = [[message.content for message in request.messages] for request in requests]
    past = ["Be brief.", "hello", "You said: hello ", "more", "You said: more "]
    assert conversations == [
        past[:2],
        past[:4],
        [*past, "lost"],
        [*past, "wait for me"],
        [*past, "third"],
        ["Be brief.", "fresh"],
    ]


def test_ctrl_c_stops_the_server_too(terminal: OpenTerminal, server: SmallServer) -> None:
    talk = terminal("chat", "wait for me")
    talk.read_until("You ")
    talk.interrupt()
    assert talk.wait() == 130
    assert server.recorder.ended.wait(5)
    assert "Traceback" not in talk.read_until("")


def test_ctrl_c_while_a_call_waits(terminal: OpenTerminal, server: SmallServer) -> None:
    server.set_health("ready", False)
    waiting = terminal("health", "--wait", "60")
    while not server.recorder.seen:
        time.sleep(0.05)
    waiting.interrupt()
    assert waiting.wait() == 130
    assert "Traceback" not in waiting.read_until("")


def test_nothing_to_classify(terminal: OpenTerminal) -> None:
    process = terminal("classify", NO_COLOR="1")
    assert "nothing to classify" in process.read_until("")
    assert process.wait() == 2
