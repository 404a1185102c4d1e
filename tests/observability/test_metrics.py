"""Metrics as Prometheus sees them: over HTTP, after real calls, with the names that dashboards know."""

import asyncio
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.models.handle import Handle, State
from server.models.loading import MemoryLimit
from server.observability.metrics import Collector, authentication, serving
from server.rpc.admission import Admission
from server.rpc.certificates import Certificates
from server.rpc.listener import CannotStart
from server.tasks.chat.circuit_breaker import CircuitBreaker
from tests.certificates import Authority
from tests.chatting import chatting, client_for, complete
from tests.fakes import OpenAIServer
from tests.rpc.test_pipeline import CLASSIFY, Served, classify

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(port: int) -> Samples:
    def get() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            return str(response.read().decode())

    families = text_string_to_metric_families(await asyncio.to_thread(get))
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


async def test_calls_lanes_and_refusals() -> None:
    server = Served()
    channel = await server.start()
    try:
        await asyncio.gather(*(classify(channel) for _ in range(5)))
        server.admission.stopping = True
        assert isinstance(await classify(channel).details(), str)
        collector = Collector(server.admission, {"models": server.classification.lanes}, [], MemoryLimit(None))
        with serving("127.0.0.1", 0, collector) as port:
            found = await scrape(port)
    finally:
        await channel.close()
        await server.server.stop(None)
        server.classification.lanes.close()
    served = {"rpc_system_name": "grpc", "rpc_method": CLASSIFY[1:], "rpc_response_status_code": "OK", "error_type": ""}
    refused = {**served, "rpc_response_status_code": "UNAVAILABLE", "error_type": "SERVER_STOPPING"}
    assert value(found, "rpc_server_call_duration_seconds_count", **served) == 5
    assert value(found, "rpc_server_call_duration_seconds_bucket", **served, le="+Inf") == 5
    assert value(found, "rpc_server_call_duration_seconds_count", **refused) == 1
    assert value(found, "quintet_active_calls", rpc_method=CLASSIFY[1:]) == 0
    assert value(found, "quintet_admission_refusals_total", reason="stopping") == 1
    assert value(found, "quintet_lane_compute_seconds_count", lanes="models") == 5
    assert value(found, "quintet_lane_wait_seconds_count", lanes="models") == 5
    assert value(found, "quintet_work_batches_total", work="other", items="1") == 5
    assert value(found, "quintet_work_waiting", work="other") == 0
    assert value(found, "quintet_work_compute_seconds_total", work="other") > 0
    assert value(found, "quintet_work_wait_seconds_total", work="other") > 0
    for name in ("expired", "abandoned", "retried", "refused", "wasted_seconds", "cache_hits", "cache_misses"):
        assert value(found, f"quintet_work_{name}_total", work="other") == 0
    assert value(found, "quintet_lane_admitted", lanes="models") == 0
    assert value(found, "process_resident_memory_bytes") > 1e6


async def test_tokens_and_time_to_the_first_one() -> None:
    breaker = CircuitBreaker("fake", failures=1)
    async with OpenAIServer("key").running() as server, chatting(client_for(server), breaker=breaker) as upstream:
        await complete(upstream)
        breaker.failed(breaker.enter() or 0)
        admission = Admission(1, 1, max_wait_seconds=1, lanes=1)
        memory = MemoryLimit(1000, {"gpt": 700})
        handle: Handle[object] = Handle("gpt")
        handle.move(State.READY)
        collector = Collector(admission, {}, [handle, Handle("loading")], memory, upstreams={"fake/gpt": upstream})
        with serving("127.0.0.1", 0, collector) as port:
            found = await scrape(port)
            with pytest.raises(CannotStart, match="in use"), serving("127.0.0.1", port, collector):
                pass
    model = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "fake", "gen_ai_request_model": "gpt"}
    assert value(found, "gen_ai_client_token_usage_sum", **model, gen_ai_token_type="input") == 11
    assert value(found, "gen_ai_client_token_usage_sum", **model, gen_ai_token_type="output") == 3
    assert value(found, "gen_ai_client_operation_time_to_first_chunk_seconds_count", **model) == 1
    assert value(found, "gen_ai_client_operation_duration_seconds_count", **model) == 1
    assert value(found, "quintet_provider_breaker_state", gen_ai_provider_name="fake") == 2
    assert value(found, "quintet_provider_breaker_openings_total", gen_ai_provider_name="fake") == 1
    assert [value(found, "quintet_model_ready", model=name) for name in ("gpt", "loading")] == [1, 0]
    assert value(found, "quintet_model_memory_bytes", model="gpt") == value(found, "quintet_memory_in_use_bytes") == 700
    assert value(found, "quintet_memory_budget_bytes") == 1000


def test_when_certificates_expire(tmp_path: Path) -> None:
    Authority().issue_server(days=(-1, 30)).write(tmp_path)
    certificates = Certificates(tmp_path / "server.pem", tmp_path / "server.key", None)
    found = {metric.name: metric.samples for metric in authentication({}, [certificates])}
    (sample,) = found["quintet_certificate_expires_timestamp_seconds"]
    assert sample.labels == {"file": f"{tmp_path}/server.pem"}
    assert sample.value == pytest.approx(time.time() + 30 * 86_400, abs=60)
