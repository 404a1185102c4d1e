"""The metrics of the real server."""

import re
import urllib.request

import grpc
from quintet.v1 import classification_pb2, classification_pb2_grpc

from tests.conftest import ServerProcess


def test_metrics_are_published_on_a_port_of_their_own(server: ServerProcess, channel: grpc.Channel) -> None:
    stub = classification_pb2_grpc.ClassificationServiceStub(channel)
    stub.Classify(classification_pb2.ClassifyRequest(texts=["Quite so."]), timeout=20)
    found = re.search(r"metrics on (http://\S+)", server.log.read_text())
    assert found
    with urllib.request.urlopen(found.group(1), timeout=5) as response:
        text = response.read().decode()
    method = "quintet.v1.ClassificationService/Classify"
    labels = f'rpc_method="{method}",rpc_response_status_code="OK",rpc_system_name="grpc"'
    count = rf"rpc_server_call_duration_seconds_count\{{.*{labels}\}} [1-9]"
    assert re.search(count, text)
    assert re.search(r'quintet_lane_compute_seconds_count\{lanes="models"\} [1-9]', text)
    assert re.search(r'quintet_work_batches_total\{items="1",work="sentiment"\} [1-9]', text)
    assert re.search(r'quintet_work_cache_misses_total\{work="sentiment"\} [1-9]', text)
    for model in ("sentiment", "en_core_web_sm", "smollm2-135m-instruct"):
        assert re.search(rf'quintet_model_memory_bytes\{{model="{model}"\}} [1-9]', text)
    assert 'quintet_model_ready{model="sentiment"} 1.0' in text
    labels = 'gen_ai_operation_name="chat",gen_ai_provider_name="embedded",gen_ai_request_model="smollm2-135m-instruct"'
    assert f"gen_ai_client_token_usage_count{{{labels}" in text
