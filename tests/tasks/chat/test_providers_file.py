"""The file of providers: what it means, what is refused and how that is said, and that keys appear nowhere."""

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.reloading_file import BadFile
from server.settings import Settings
from server.tasks.chat.configuration import Routes, read_routes
from server.tasks.chat.providers_file import Azure, OpenAI, parse_providers, read_providers

SAMPLE = Path(__file__).parents[3] / "data" / "samples" / "providers.toml"
KEY = "sk-very-secret"
SMALL = """
price_table = "7"
[providers.one]
kind = "openai"
base_url = "http://127.0.0.1:8000/v1/"
api_key_env = "ONE_KEY"
[providers.one.models."org/model:7b"]
context_tokens = 4096
prompt_price = "0.15"
[routes]
default = ["one/org/model:7b"]
"""


def test_the_sample_is_right_and_has_every_key() -> None:
    found = read_providers(SAMPLE)
    openai, azure = found.providers["openai"], found.providers["azure"]
    assert isinstance(openai, OpenAI)
    assert isinstance(azure, Azure)
    prices = found.prices(openai.models["gpt-4o-mini"])
    assert (prices.prompt_micros, prices.completion_micros, prices.cached_micros) == (150_000, 600_000, 75_000)
    assert (prices.version, prices.currency) == ("2026-11", "USD")
    assert azure.models["gpt-4o"].completion_price == 10_000_000
    text = SAMPLE.read_text()
    for table in (type(found), OpenAI, Azure, type(openai.models["gpt-4o-mini"])):
        for key in table.model_fields:
            assert key in text


def test_a_small_file() -> None:
    found = parse_providers(SMALL)
    ((ref, provider, _),) = found.models()
    assert isinstance(provider, OpenAI)
    assert (ref, provider.base_url) == ("one/org/model:7b", "http://127.0.0.1:8000/v1")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "openai"', "", r"\[providers\] one: .*kind"),
        ('kind = "openai"', 'kind = "other"', r"\[providers\] one: .*'openai', 'azure'"),
        ('kind = "openai"', 'kind = "openai"\nbase_ulr = 1', r"\[providers.one\] base_ulr: there is no such key"),
        (
            'kind = "openai"',
            'kind = "openai"\napi_key = "sk-very-secret"',
            r"api_key: there is no such key",
        ),
        ('"http://127.0.0.1:8000/v1/"', '"http://me:sk-very-secret@host/v1"', "base_url: must have no user, password"),
        ('"http://127.0.0.1:8000/v1/"', '"https://host/v1?key=sk-very-secret"', "base_url: must have no user"),
        ('"http://127.0.0.1:8000/v1/"', '"127.0.0.1:8000"', "base_url: must be an address"),
        ('"http://127.0.0.1:8000/v1/"', '"http://host:99999/v1"', "base_url: must be an address"),
        ('"0.15"', "0.15", r"\[providers.one.models.org/model:7b\] prompt_price: must be a decimal in quotes"),
        ('"0.15"', '"-1"', "prompt_price: must be a decimal"),
        ('"0.15"', '"1e3"', "prompt_price: must be a decimal"),
        ('"0.15"', '"0.0000001"', "prompt_price: .* six decimals"),
        ("context_tokens = 4096", "", "context_tokens: Field required"),
        ("context_tokens = 4096", "context_tokens = -1", "context_tokens: Input should be greater"),
        ("context_tokens = 4096", 'context_tokens = 9\ndeployment = "x"', "context_tokens"),
        ("context_tokens = 4096", 'context_tokens = 99\ndeployment = "x"', "deployment: is for kind azure"),
        ('price_table = "7"', "concurrency = 1", "^concurrency: there is no such key"),
        ('price_table = "7"', 'folder = "x"', "^folder: there is no such key"),
        ('api_key_env = "ONE_KEY"', 'headers = { A = "b\\nsk-very-secret" }', "headers.* must be a line"),
        ('default = ["one/', 'other = ["one/', 'there must be a route "default"'),
        (
            'default = ["one/',
            'default = ["two/',
            r"\[routes\] default: there is no two/org/model:7b; known: emb",
        ),
        ('default = ["one/org/model:7b"]', "default = []", r"\[routes\] default: List should have at least 1"),
        ('default = ["one/org/model:7b"]', 'default = ["embedded", "embedded"]', "names one of them twice"),
        ("[providers.one", "[providers.embedded", "this name is the embedded model's"),
        ("[routes]", "[routes", "it is not TOML"),
    ],
)
def test_what_is_wrong_is_said_with_its_place_and_without_secrets(old: str, new: str, message: str) -> None:
    with pytest.raises(BadFile, match=message) as caught:
        parse_providers(SMALL.replace(old, new))
    assert KEY not in str(caught.value)


words = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
names = st.from_regex(r"\A[a-z0-9][a-z0-9_-]{0,20}\Z").filter(lambda name: name != "embedded")
prices = st.tuples(st.integers(0, 999_999), st.integers(0, 999_999))
models = st.dictionaries(words, st.tuples(st.integers(16, 10**8), prices), min_size=1, max_size=3)


@given(st.dictionaries(names, models, max_size=3), words, st.data())
def test_what_is_written_is_what_is_read(tables: dict[str, Any], version: str, data: st.DataObject) -> None:
    lines, refs = [f"price_table = {quoted(version)}"], ["embedded"]
    for name, its_models in tables.items():
        lines += [f"[providers.{name}]", 'kind = "openai"', 'base_url = "http://host/v1"']
        for model, (context, (whole, millionths)) in its_models.items():
            lines += [f"[providers.{name}.models.{quoted(model)}]", f"context_tokens = {context}"]
            lines += [f'prompt_price = "{whole}.{millionths:06}"']
            refs += [f"{name}/{model}"]
    refs_drawn = data.draw(st.lists(st.sampled_from(refs), min_size=1, max_size=8, unique=True))
    lines += ["[routes]", f"default = [{', '.join(map(quoted, refs_drawn))}]"]
    found = parse_providers("\n".join(lines))
    assert found.routes == {"default": refs_drawn}
    for ref, _, value in found.models():
        name, model = ref.split("/", 1)
        context, (whole, millionths) = tables[name][model]
        assert (value.context_tokens, value.prompt_price) == (context, whole * 1_000_000 + millionths)
        assert found.prices(value).version == version


def quoted(text: str) -> str:
    return json.dumps(text)  # for printable ASCII the same as TOML's


@given(st.text(max_size=200) | st.text('[]={}".#\n abk', max_size=60).map(SMALL.__add__))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(BadFile):
        parse_providers(text)


def settings(path: Path | None, **others: Any) -> Settings:
    return Settings(providers=path, **others)


def file(folder: Path, content: str = SMALL) -> Path:
    path = folder / "providers.toml"
    path.write_text(content)
    return path


def keys(found: Routes) -> dict[str, str]:
    return {provider: key() for provider, key in found.keys.items()}


def test_names_keys_and_no_trace_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ONE_KEY", KEY)
    content = SMALL.replace('kind = "openai"', f'kind = "openai"\nheaders = {{ X-Key = "{KEY}" }}')
    with caplog.at_level(logging.DEBUG):
        found = read_routes(settings(file(tmp_path, content)))
    assert keys(found) == {"one": KEY}
    assert found.names == {"default": ["one/org/model:7b"], "one/org/model:7b": ["one/org/model:7b"]}
    assert KEY not in f"{found!r} {found.providers!r} {found.providers.model_dump_json()} {caplog.text}"


def test_the_key_in_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    path = file(tmp_path, SMALL.replace('api_key_env = "ONE_KEY"', 'api_key_file = "key"'))
    assert keys(read_routes(settings(path))) == {"one": KEY}
    (tmp_path / "key").write_text(f"two\n{KEY}\n")
    with pytest.raises(BadFile, match=r"\[providers.one\]: .*no line of printable ASCII") as caught:
        read_routes(settings(path))
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ('api_key_env = "ONE_KEY"', "environment variable ONE_KEY is missing"),
        ('api_key_file = "nowhere"', r"\[providers.one\]: .*nowhere: no such file"),
        ('api_key_file = "nowhere"\napi_key_env = "ONE_KEY"', "has both"),
    ],
)
def test_a_key_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, message: str) -> None:
    monkeypatch.delenv("ONE_KEY", raising=False)
    with pytest.raises(BadFile, match=message):
        read_routes(settings(file(tmp_path, SMALL.replace('api_key_env = "ONE_KEY"', key))))


def test_the_short_ways() -> None:
    found = read_routes(settings(None, llm_base_url="http://127.0.0.1:8000/v1", llm_model="gpt", llm_api_key=KEY))
    assert (found.names, keys(found)) == ({"gpt": ["endpoint/gpt"]}, {"endpoint": KEY})
    assert KEY not in repr(found)
    assert read_routes(settings(None, llm="small")).names == {"smollm2-135m-instruct": ["embedded"]}
    assert read_routes(settings(None, llm="off")).names == {}


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    path = file(tmp_path, '[routes]\ndefault = ["embedded"]\n')
    assert read_routes(settings(path, llm="small")).names == {
        "default": ["embedded"],
        "smollm2-135m-instruct": ["embedded"],
    }
    with pytest.raises(BadFile, match="QUINTET_LLM is off"):
        read_routes(settings(path, llm="off"))
    with pytest.raises(BadFile, match="both set"):
        read_routes(settings(path, llm_base_url="http://host", llm_model="gpt"))
    with pytest.raises(BadFile, match=r"QUINTET_PROVIDERS: nowhere.toml cannot be read: No such file"):
        read_routes(settings(tmp_path / "nowhere.toml"))
    with pytest.raises(BadFile, match=r"QUINTET_LLM_BASE_URL.* must have no user"):
        read_routes(settings(None, llm_base_url=f"http://me:{KEY}@host", llm_model="gpt"))


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    fifo = tmp_path / "providers.toml"
    os.mkfifo(fifo)
    with pytest.raises(BadFile, match=r"QUINTET_PROVIDERS: providers\.toml cannot be read: not a regular file"):
        read_providers(fifo)
    with pytest.raises(BadFile, match="it is not TOML: Exceeds the limit"):
        parse_providers("x = " + "9" * 5_000)
