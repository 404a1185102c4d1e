"""Every command as a process of its own, against a real server."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import grpc
from quintet.v1 import model_pb2
from quintet_client.cli.price import EXAMPLE

from tests.clients.conftest import Quintet
from tests.clients.recorder import Failure
from tests.clients.small_server import SmallServer


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_classify(quintet_command: Quintet) -> None:
    done = quintet_command("classify", "I love it", "this is bad", "meh")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "SCORE  LABEL     TEXT",
        "0.750  positive  I love it",
        "0.750  negative  this is bad",
        "0.750  neutral   meh",
    ]
    assert done.stderr == ""


def test_classify_lines_in_batches(quintet_command: Quintet, server: SmallServer) -> None:
    lines = "".join(f"good {number}\n\n" for number in range(130))
    done = quintet_command("classify", "--json", "--top-k", "2", "--model", "m", stdin=lines)
    results = json_lines(done.stdout)
    assert [each["text"] for each in results] == [f"good {number}" for number in range(130)]
    assert [label["label"] for label in results[0]["labels"]] == ["positive", "negative"]
    assert results[0]["model"]["name"] == "rules"
    requests: list[Any] = [call.request for call in server.recorder.seen]
    assert [len(request.texts) for request in requests] == [64, 64, 2]
    assert all((request.model, request.top_k) == ("m", 2) for request in requests)


def test_a_bad_line_is_named_by_its_number(quintet_command: Quintet, server: SmallServer) -> None:
    violations = [("texts[1]", "must be at most 500 characters")]
    server.recorder.failures["Classify"].append(
        Failure(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", violations=violations)
    )
    done = quintet_command("classify", stdin="one\n\nthree\n")
    assert done.returncode == 2
    assert done.stderr == "error: the request is invalid\n  line 3: must be at most 500 characters\n"


def test_texts_that_the_model_did_not_read_to_the_end(quintet_command: Quintet) -> None:
    done = quintet_command("classify", "x" * 101, "short")
    assert done.returncode == 0
    assert "the ends of 1 were ignored" in done.stderr


def test_texts_that_the_model_does_not_know(quintet_command: Quintet) -> None:
    done = quintet_command("classify", "👍", "good")
    assert done.returncode == 0
    assert "1 texts are mostly unknown to the model" in done.stderr


def test_price_from_the_example(quintet_command: Quintet, in_process: Quintet, tmp_path: Path) -> None:
    example = quintet_command("price", "--example", QUINTET_ADDRESS="127.0.0.1:1")
    assert json.loads(example.stdout) == EXAMPLE
    (tmp_path / "house.json").write_text(example.stdout)
    done = in_process("price", "--file", "house.json", "--overall-quality", "9", cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "HOUSE     PRICE      FROM        TO  NEIGHBORHOOD  TYPE  BUILT  SQFT",
        "    1  $261,000  $195,750  $326,250  NAmes         1Fam   1974  1450",
    ]
    assert json_lines(in_process("price", "--file", "-", "--json", stdin=example.stdout).stdout) == [
        {
            "price_usd": 174000.0,
            "low_usd": 130500.0,
            "high_usd": 217500.0,
            "warnings": [],
            "model": {"name": "rules", "version": "1-abc", "digest": "sha256:0"},
        }
    ]


def table_of(*houses: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(houses[0]))
    writer.writeheader()
    writer.writerows(houses)
    return text.getvalue()


def test_price_of_a_table(quintet_command: Quintet, server: SmallServer) -> None:
    house: dict[str, Any] = {**EXAMPLE}
    houses = [{**house, "central_air": word} for word in ("Y", "no", "TRUE", "0")] * 75
    done = quintet_command("price", "--file", "-", "--json", stdin="\ufeff" + table_of(*houses))
    assert len(json_lines(done.stdout)) == 300
    requests: list[Any] = [call.request for call in server.recorder.seen]
    assert [len(request.houses) for request in requests] == [256, 44]
    assert [each.central_air for each in requests[0].houses[:4]] == [True, False, True, False]
    assert requests[0].houses[0].above_ground_area_sqft == 1450


def test_price_outside_the_training_range(in_process: Quintet, tmp_path: Path) -> None:
    houses = [{**EXAMPLE, "bedrooms": 12 if number == 300 else 3} for number in range(1, 302)]
    (tmp_path / "houses.json").write_text(json.dumps(houses))
    done = in_process("price", "--file", "houses.json", cwd=tmp_path)
    assert "warning: bedrooms of house 300 is 12; the model was trained on 0 to 8" in done.stderr
    assert done.stderr.count("warning") == 1
    done = in_process("price", "--file", "houses.json", "--json", cwd=tmp_path)
    warnings = [line["warnings"] for line in json_lines(done.stdout)]
    assert warnings[299] == [{"field": "bedrooms", "value": 12.0, "minimum": 0.0, "maximum": 8.0}]
    assert sum(map(len, warnings)) == 1


def test_price_by_options_alone(quintet_command: Quintet, in_process: Quintet, server: SmallServer) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in EXAMPLE.items() if name != "central_air"]
    assert quintet_command("price", *options, "--no-central-air").returncode == 0
    request: Any = server.recorder.seen[0].request
    assert request.houses[0].kitchen_quality == "TA"
    assert request.houses[0].central_air is False
    done = in_process("price", *options)
    assert (done.returncode, done.stderr) == (2, "error: the request is invalid\n  house.central_air: is missing\n")


def test_chat(quintet_command: Quintet, in_process: Quintet, server: SmallServer) -> None:
    options = ("--system", "Be brief.", "--temperature", "0", "--max-tokens", "9", "--model", "m", "--seed", "4")
    done = quintet_command("chat", "hello", *options)
    assert (done.stdout, done.stderr) == ("You said: hello \n", "")
    request: Any = server.recorder.seen[0].request
    assert [(turn.role, turn.content) for turn in request.messages] == [(1, "Be brief."), (2, "hello")]
    assert (request.temperature, request.max_output_tokens, request.model, request.seed) == (0, 9, "m", 4)
    assert in_process("chat", stdin="from a pipe").stdout == "You said: from a pipe \n"


def test_chat_as_json_lines(quintet_command: Quintet) -> None:
    events = json_lines(quintet_command("chat", "hello", "--json").stdout)
    assert [each["delta"]["text"] for each in events[:-1]] == ["You ", "said: ", "hello "]
    assert events[-1]["done"]["finish_reason"] == "FINISH_REASON_STOP"


def test_an_answer_that_is_cut_off(quintet_command: Quintet) -> None:
    done = quintet_command("chat", "word " * 30)
    assert done.returncode == 0
    assert "cut off at the token limit" in done.stderr


def test_an_answer_that_fails_in_the_middle(quintet_command: Quintet, server: SmallServer) -> None:
    server.recorder.failures["StreamChat:delta"].append(
        Failure(grpc.StatusCode.UNAVAILABLE, "UPSTREAM_FAILED", "the endpoint broke off", retry_after=2)
    )
    done = quintet_command("chat", "hello")
    assert done.returncode == 1
    assert (done.stdout, done.stderr) == ("You \n", "error: the endpoint broke off\n  try again in 2 s\n")


def test_analyze(quintet_command: Quintet) -> None:
    done = quintet_command("analyze", "--tasks", "language,entities,sentences,syntax", "Ada was here. Nobody else.")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "Language",
        "  en 0.97",
        "Entities",
        "  [Ada PERSON] was here. [Nobody PERSON] else.",
        "Sentences",
        "  1. Ada was here.",
        "  2. Nobody else.",
        "Syntax",
        "  NR  TOKEN   LEMMA   POS  TAG  RELATION  HEAD",
        "   1  Ada     ada     X         dep       root",
        "   2  was     was     X         dep       Ada",
        "   3  here    here    X         dep       was",
        "   4  Nobody  nobody  X         dep       here",
        "   5  else    else    X         dep       Nobody",
    ]


def test_a_task_that_fails_does_not_hide_the_others(quintet_command: Quintet, in_process: Quintet) -> None:
    done = quintet_command("analyze", stdin="Ada was here.")
    assert done.returncode == 1
    assert "[Ada PERSON] was here." in done.stdout
    assert done.stderr == "sentiment failed: run: make models\ntopics failed: run: make models\n"
    assert len(json.loads(in_process("analyze", "Ada", "--json").stdout)["failures"]) == 2


def test_models(quintet_command: Quintet, in_process: Quintet) -> None:
    assert quintet_command("models").stdout.splitlines() == [
        "NAME          TASK            STATE   ENGINE     SIZE",
        "house-prices  regression      ready   sklearn  1.2 MB",
        "topics        classification  failed                -",
        "topics: the artefact is missing; run: make models",
    ]
    one = in_process("models", "house-prices").stdout
    for expected in (
        "year_built       1872 to 2010",
        "kitchen_quality  Ex, Gd, TA",
        "error_usd  14,901",
        "r2         0.9071",
        "GPL-3",
    ):
        assert expected in one
    names = [model["ref"]["name"] for model in json_lines(in_process("models", "--json").stdout)]
    assert names == ["house-prices", "topics"]


def test_health(quintet_command: Quintet, in_process: Quintet, server: SmallServer) -> None:
    good = quintet_command("health", "--wait", "5")
    assert good.returncode == 0
    assert good.stdout.count(" SERVING") == 7
    chat, rag = (
        next(each for each in server.models.services if each.name == f"quintet.v1.{name}Service")
        for name in ("Chat", "Rag")
    )
    server.set_health(chat.name, False)
    chat.serving, chat.message = False, "QUINTET_LLM is off"
    optional = in_process("health")
    assert (optional.returncode, optional.stdout.splitlines()[-1]) == (0, f"{chat.name}: QUINTET_LLM is off")
    assert in_process("info").returncode == 0
    chat.required = True  # an outage of its providers, in which the server stays ready
    assert in_process("health").returncode == 1
    chat.serving, chat.message = True, ""
    server.set_health(chat.name, True)
    extra = model_pb2.ServiceStatus(name="quintet.v1.ClassificationService/mine", message="the artefact is missing")
    server.models.services.append(extra)
    assert f"{extra.name}  NOT_SERVING" in in_process("health").stdout
    assert in_process("info").returncode == 0
    for name in ("ready", rag.name):
        server.set_health(name, False)
    rag.serving, rag.required, rag.message = False, True, "the embedder is missing"
    for arguments in (("info",), ("info", "--json")):
        told = in_process(*arguments)
        assert (told.returncode, "the embedder is missing" in told.stdout) == (1, True)
    bad = in_process("health", "--wait", "0.3")
    assert bad.returncode == 1
    assert re.search("RagService +NOT_SERVING", bad.stdout)
    assert "quintet.v1.RagService: the embedder is missing\n" in bad.stdout
    server.recorder.failures["GetServerInfo"].append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_OVERLOADED"))
    busy = json_lines(in_process("health", "--json").stdout)
    assert {each["service"]: each["status"] for each in busy}["quintet.v1.RagService"] == "NOT_SERVING"


def test_info(quintet_command: Quintet, in_process: Quintet) -> None:
    done = quintet_command("info").stdout
    assert "quintet 9.9.9" in done
    assert "1:02:03 ago" in done
    assert json.loads(in_process("info", "--json").stdout)["limits"]["max_concurrent_calls"] == 512
