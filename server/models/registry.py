"""A store that mirrors a registry. Serving reads only the store, so it goes on while the registry is down or hangs."""

import errno
import importlib.util
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from server.domain.errors import ModelVersionNotFound, QuintetError, RegistryFailed, StorageFull
from server.models.artefact import is_folder_name, manifest_digest, open_version, read_manifest
from server.models.store import CANDIDATE, CURRENT, ModelStore, Named, VersionRefused

log = logging.getLogger(__name__)

# Tags of a model version in MLflow.
_VERSION, _DIGEST = "quintet.version", "quintet.digest"
# For MLflow's client: give up soon, print nothing, send no telemetry.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# Until a version that cannot be used, or could not be fetched, is fetched again: seconds, doubled each time.
_DAMAGED_SECONDS, _UNREACHABLE_SECONDS, _LONGEST_SECONDS = 600.0, 10.0, 6 * 3600.0


# MLflow's error codes for what concerns one model; others concern the registry.
_OF_THE_MODEL = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "BAD_REQUEST"}
_DOWNLOAD = ".download-"
_STALE_SECONDS = 24 * 3600.0  # no download takes longer


class _Unreachable(RegistryFailed):
    """It may answer the next time."""


class _Refusal(NamedTuple):
    named: Named
    message: str
    is_damaged: bool
    delay: float
    until: float  # time.monotonic()


def open_store(models: Path, uri: str = "") -> ModelStore:
    """The folder `models`, which mirrors the MLflow server at `uri` if there is one. Raises RegistryFailed."""
    return MlflowStore(models, uri) if uri else ModelStore(models)


class MlflowStore(ModelStore):
    """Registered models and their aliases on the MLflow server at `uri`.

    A model version there is an artefact's folder; tags have the artefact's version and digest. Methods may be called on
    several threads, each for another model.
    """

    has_registry = True

    def __init__(self, models: Path, uri: str) -> None:
        super().__init__(models)
        self._uri = uri
        self._preparing = threading.Lock()
        self._prepared: Any = None
        self._refusals: dict[tuple[str, str], _Refusal] = {}  # by model and alias
        self._rechecked: set[tuple[str, str]] = set()
        if importlib.util.find_spec("mlflow") is None:
            raise RegistryFailed("a registry needs more packages: pip install 'quintet[registry]'")

    def prepare(self) -> None:
        with self._preparing:
            if self._prepared is None:
                for name, value in _ENVIRONMENT.items():
                    os.environ.setdefault(name, value)
                from mlflow import MlflowClient

                self._prepared = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
                for left in self.models.glob(f"{_DOWNLOAD}*"):  # of a process that was killed
                    with suppress(OSError):
                        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                            shutil.rmtree(left)

    @property
    def _client(self) -> Any:
        self.prepare()
        return self._prepared

    def publish(self, source: Path, alias: str | None = CURRENT) -> Path:
        """Into the registry, if it lacks the artefact, and into the store."""
        manifest, digest = read_manifest(source), manifest_digest(source)
        with _failures():
            client = self._client
            if not client.search_registered_models(f"name = '{manifest.name}'"):
                client.create_registered_model(manifest.name)
            if all(tags.get(_DIGEST) != digest for tags in self._versions(manifest.name).values()):
                experiment = client.get_experiment_by_name("quintet")
                run = client.create_run(experiment.experiment_id if experiment else client.create_experiment("quintet"))
                client.log_artifacts(run.info.run_id, str(source), manifest.name)
                client.set_terminated(run.info.run_id)
                tags = {_VERSION: manifest.version, _DIGEST: digest}
                uploaded = f"{run.info.artifact_uri}/{manifest.name}"
                client.create_model_version(manifest.name, uploaded, run.info.run_id, tags=tags)
        return super().publish(source, alias)

    def look_up(self, name: str) -> list[Named]:
        """What `current` and `candidate` mean there."""
        from mlflow.exceptions import RestException

        with _failures():
            try:
                found = self._client.search_registered_models(f"name = '{name}'")
                aliases = found[0].aliases if found else {}
                return [self._named(name, alias, aliases[alias]) for alias in (CURRENT, CANDIDATE) if alias in aliases]
            except RestException as error:
                if error.error_code in _OF_THE_MODEL:
                    why = f'the registry cannot say what "{name}" is: {error}'
                    raise VersionRefused("", why, is_damaged=True) from error
                raise

    def _named(self, name: str, alias: str, number: str) -> Named:
        found = self._client.get_model_version(name, number)
        return Named(name, alias, number, found.tags.get(_VERSION, ""), found.tags.get(_DIGEST, ""), found.source)

    def fetch(self, named: Named) -> None:
        """Download that version if the store lacks it, and move the alias."""
        key = named.model, named.alias
        is_rechecked, refusal = key in self._rechecked, self._refusals.get(key)
        self._rechecked.discard(key)
        if not is_rechecked:
            if self.digest(*key) == (named.version, named.digest):
                return
            if refusal and refusal.named == named and time.monotonic() < refusal.until:
                raise VersionRefused(named.version, refusal.message, is_damaged=refusal.is_damaged)
        try:
            self._mirror(named)
        except Exception as error:
            is_damaged = not isinstance(error, _Unreachable | StorageFull)
            delay = _DAMAGED_SECONDS if is_damaged else _UNREACHABLE_SECONDS
            if refusal and refusal.named == named:
                delay = min(max(delay, 2 * refusal.delay), _LONGEST_SECONDS)
            message = _refusal(named, error, delay)
            self._refusals[key] = _Refusal(named, message, is_damaged, delay, time.monotonic() + delay)
            raise VersionRefused(named.version, message, is_damaged=is_damaged) from error
        self._refusals.pop(key, None)

    def recheck(self, name: str) -> None:
        self._rechecked |= {(name, CURRENT), (name, CANDIDATE)}

    def _mirror(self, named: Named) -> None:
        name, alias, number, version, digest, source = named
        if not is_folder_name(version):
            raise RegistryFailed(f"its version {number} has no usable tag {_VERSION}")
        if not self.has(name, version, digest):
            log.info("registry: %s@%s is version %s (%s), %s", name, alias, number, version, digest)
            self._download(name, version, digest, source)
        if self.digest(name, alias) != (version, digest):
            super().point(name, alias, version)

    def _download(self, name: str, version: str, digest: str, source: str) -> None:
        """Fetch and verify a version, and put it into the store without an alias."""
        from mlflow.artifacts import download_artifacts

        self.models.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_DOWNLOAD, dir=self.models, ignore_cleanup_errors=True) as folder:
            aside = Path(folder)
            (aside / name).mkdir()
            (aside / "got").mkdir()
            with _failures():
                got = download_artifacts(artifact_uri=source, dst_path=str(aside / "got"), tracking_uri=self._uri)
            Path(got).rename(aside / name / version)
            artefact = open_version(aside, name, version)
            if artefact.digest != digest:
                raise RegistryFailed(f"it is {artefact.digest} instead of {digest}")
            super().publish(artefact.path, alias=None)

    def point(self, name: str, alias: str, version: str) -> None:
        """In the registry, then in the store."""
        digest = self.digest_of(name, version)
        with _failures():
            numbers = [n for n, tags in self._versions(name).items() if tags.get(_DIGEST) == digest]
            if not numbers:
                raise ModelVersionNotFound(name, version, [t.get(_VERSION, "") for t in self._versions(name).values()])
            self._client.set_registered_model_alias(name, alias, numbers[0])
        super().point(name, alias, version)

    def _versions(self, name: str) -> dict[str, dict[str, str]]:
        """The tags of every version by its number, newest first."""
        found = self._client.search_model_versions(f"name = '{name}'", order_by=["version_number DESC"])
        return {version.version: version.tags for version in found}


def _refusal(named: Named, error: Exception, delay: float) -> str:
    """What an operator should know of a version that is not used."""
    if isinstance(error, QuintetError):
        why = error.message
    else:  # whatever a registry's client raises
        log.error("registry: %s %s could not be fetched", named.model, named.version, exc_info=error)
        why = "it could not be fetched; see the server's log"
    which = f'version {named.version or named.number} of "{named.model}" in the registry'
    return f"{which} is not used: {why}. It is fetched again once it changes, in {delay:.0f} s, or on ReloadModel"


@contextmanager
def _failures() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("the disk is full") from error
        raise _Unreachable("the model registry cannot be reached or refused the request") from error
