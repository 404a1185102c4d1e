"""Settings: which are refused, and that all are documented."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from server.models.spec import ModelSettings
from server.settings import Settings, explain, unknown_variables
from tests.conftest import ROOT

FILE = Path("some.pem")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"])
def test_this_machine_needs_no_tenants(host: str) -> None:
    assert Settings(host=host).is_local


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "::", "10.0.0.1", "models.internal", "localhost.example", ""])
def test_other_addresses_need_tenants_or_a_word(host: str) -> None:
    with pytest.raises(ValidationError, match="every client could call"):
        Settings(host=host)
    assert not Settings(host=host, tenants=FILE).is_local
    assert not Settings(host=host, allow_anonymous=True).is_local


@pytest.mark.parametrize("given", [{"tls_cert": FILE}, {"tls_key": FILE}, {"tls_client_ca": FILE}])
def test_certificates_are_complete(given: dict[str, Path]) -> None:
    with pytest.raises(ValidationError, match=r"QUINTET_TLS_CERT and QUINTET_TLS_KEY"):
        Settings(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given", [{"shutdown_pause_seconds": 8}, {"shutdown_grace_seconds": 20}, {"shutdown_seconds": 24}]
)
def test_the_parts_of_a_stop_fit_into_the_whole(given: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=r"QUINTET_SHUTDOWN_PAUSE_SECONDS .* more than QUINTET_SHUTDOWN_SECONDS"):
        Settings(**given)  # type: ignore[arg-type]
    Settings(**{**given, "shutdown_seconds": 60})  # type: ignore[arg-type]


def test_every_setting_is_documented_and_has_a_description() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    documented = set(re.findall(r"QUINTET_([A-Z_]+)", page)) - {"CACHE", "HUB"}  # of `make train`
    assert documented == {name.upper() for name in Settings.model_fields}
    assert all(f"`{name}`" in page for name in ModelSettings.model_fields)
    assert all(field.description for field in (Settings.model_fields | ModelSettings.model_fields).values())


def lines(**values: str) -> list[str]:
    """What a server says to these variables."""
    with pytest.raises(ValidationError) as caught:
        Settings(**values)  # type: ignore[arg-type]
    return list(explain(caught.value))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"models": "{"}, "QUINTET_MODELS: not JSON: Expecting property name"),
        ({"models": "[" * 100_000}, "QUINTET_MODELS: not JSON: maximum recursion depth exceeded"),
        ({"models": "[]"}, "QUINTET_MODELS: Input should be a valid dictionary"),
        ({"models": '{"topics": 1}'}, "QUINTET_MODELS: topics: Input should be a valid dictionary"),
        ({"models": '{"topics": {"engine": 1}}'}, "QUINTET_MODELS: topics.engine: Input should be 'onnx'"),
        (
            {"models": '{"topics": {"preloaded": true}}'},
            "QUINTET_MODELS: topics.preloaded: there is no such option; is preload meant?",
        ),
        ({"models": '{"topics": {"x": true}}'}, "QUINTET_MODELS: topics.x: there is no such option"),
        ({"port": "http"}, "QUINTET_PORT: Input should be a valid integer"),
        (
            {"port": "tcp://10.0.0.7:50051"},
            "QUINTET_PORT: is what Kubernetes sets for a Service named quintet: se",
        ),
        ({"ledger_url": "postgresql://u:sec@ret@127.0.0.1/db"}, "QUINTET_LEDGER_URL: must be postgresql://USER:PASS"),
        (
            {"ledger_url": "postgresql://u:secret@127.0.0.1:abc/db"},
            "QUINTET_LEDGER_URL: must be postgresql://USER:PASS",
        ),
        ({"ledger_url": "postgresql://u:secret%@127.0.0.1/db"}, "QUINTET_LEDGER_URL: must be postgresql://USER:PASS"),
        ({"ledger_url": "postgresql://u:secret@[::1/db"}, "QUINTET_LEDGER_URL: must be postgresql://USER:PASS"),
        (
            {"redis_url": "http://:secret@127.0.0.1"},
            "QUINTET_REDIS_URL: must begin with redis://, rediss:// or unix://",
        ),
        ({"redis_url": "redis://:secret@127.0.0.1:x"}, "QUINTET_REDIS_URL: must begin with redis://, rediss:// or"),
        ({"redis_url": "redis://:secret@h?nosuch=1"}, "QUINTET_REDIS_URL: has an option after ? that is unknown"),
        ({"redis_url": "rediss://:secret@h?ssl_cert_reqs=x"}, "QUINTET_REDIS_URL: has an option after ? that is unkn"),
        ({"redis_url": "redis://:secret@h/limits"}, "QUINTET_REDIS_URL: must have the number of a database"),
        ({"registry": "mlflow"}, "QUINTET_REGISTRY: must be a URI such as http://"),
        ({"llm_base_url": "http://127.0.0.1:1"}, "QUINTET_LLM_BASE_URL needs QUINTET_LLM_MODEL"),
    ],
)
def test_a_problem_is_one_line_with_its_place(values: dict[str, str], line: str) -> None:
    (found,) = lines(**values)
    assert found.startswith(line)
    assert "\n" not in found
    assert "sec" not in found.replace("special", "").replace("specification", "")


def test_the_data_folder_can_be_made_and_written_to(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below"):
        assert lines(data=str(path)) == [f"QUINTET_DATA: {file} is not a folder"]
    (tmp_path / "index").touch()
    assert lines(data=str(tmp_path)) == [f"QUINTET_DATA: {tmp_path}/index is not a folder"]
    assert Settings(data=tmp_path / "new" / "folder").data
    tmp_path.chmod(0o555)
    script = f"""if True:
        import os
        from pathlib import Path
        from pydantic import ValidationError
        from server.settings import Settings, explain
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            Settings(data=Path({str(tmp_path / "new")!r}))
        except ValidationError as error:
            print(*explain(error))"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.startswith("QUINTET_DATA: /")
    assert done.stdout.endswith(" cannot be written to by this user; the ledger is kept there\n")


def test_variables_that_are_no_settings_are_reported() -> None:
    known = ["QUINTET_PORT", "quintet_port", "QUINTET_ADDRESS", "QUINTET_API_KEY", "QUINTET_HUB", "PORT", "HOME"]
    kubernetes = ["QUINTET_SERVICE_HOST", "QUINTET_SERVICE_PORT_GRPC", "QUINTET_PORT_50051_TCP_ADDR"]
    assert unknown_variables([*known, *kubernetes]) == []
    assert unknown_variables(["QUINTET_LLM_MODELL", "QUINTET_Z"]) == [
        "QUINTET_LLM_MODELL is set, but there is no such setting; is QUINTET_LLM_MODEL meant?",
        "QUINTET_Z is set, but there is no such setting",
    ]


def test_help_shows_defaults_as_a_person_writes_them() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "server", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    text = " ".join(shown.split())
    for part in (
        "0 disables it [16MiB]",
        "slower [false]",
        "grpc server reflection [true]",
        "next token, in seconds [120]",
    ):
        assert part.lower() in text.lower()
    for wrong in ("[]", "[None]", "[False]", "[16777216]", "SecretStr"):
        assert wrong not in text
