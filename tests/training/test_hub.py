"""A hub that is not there costs at most its budget, once."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.training.index_server import IndexServer
from training.fetch.hub import TIMEOUT_SECONDS, Hub


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("QUINTET_HUB", raising=False)


def test_a_hub_that_never_answers_costs_its_budget_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, says nothing
        hub = Hub(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.5)
        begun = time.monotonic()
        with ThreadPoolExecutor(8) as executor:
            answers = list(executor.map(lambda _: hub.reachable(), range(16)))
        assert not any(answers)
        assert time.monotonic() - begun < 0.9
    assert TIMEOUT_SECONDS <= 3.0


def test_a_closed_port_costs_nothing() -> None:
    begun = time.monotonic()
    assert not Hub("http://127.0.0.1:9").reachable()
    assert time.monotonic() - begun < 1.0


def test_a_hub_that_answers_is_used_even_if_it_refuses_its_front_page(index: IndexServer) -> None:
    assert Hub(index.url).reachable()


def test_the_hub_can_be_switched_off(index: IndexServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUINTET_HUB", "off")
    assert not Hub(index.url).reachable()
    assert index.requests == []
