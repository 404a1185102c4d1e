"""Settings: which are refused, and that all are documented."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from server.models.spec import ModelSettings
from server.settings import Settings
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
