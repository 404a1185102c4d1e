"""A store that mirrors a registry. Serving reads only the store, so it goes on while the registry is down."""

import importlib.util
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from server.domain.errors import ModelVersionNotFound, RegistryFailed
from server.models.artefact import MANIFEST, file_sha256, is_folder_name, open_version, read_manifest
from server.models.store import CANDIDATE, CURRENT, ModelStore

log = logging.getLogger(__name__)

# Tags of a model version in MLflow.
_VERSION, _DIGEST = "quintet.version", "quintet.digest"
# For MLflow's client: give up soon, print nothing, send no telemetry.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def open_store(models: Path, uri: str = "") -> ModelStore:
    """The folder `models`, which mirrors the MLflow server at `uri` if there is one. Raises RegistryFailed."""
    return MlflowStore(models, uri) if uri else ModelStore(models)


class MlflowStore(ModelStore):
    """Registered models and their aliases on the MLflow server at `uri`.

    A model version there is an artefact's folder; tags have the artefact's version and digest.
    """

    def __init__(self, models: Path, uri: str) -> None:
        super().__init__(models)
        self._uri = uri
        if importlib.util.find_spec("mlflow") is None:
            raise RegistryFailed("a registry needs more packages: pip install 'quintet[registry]'")

    @cached_property
    def _client(self) -> Any:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    def publish(self, source: Path, alias: str | None = CURRENT) -> Path:
        """Into the registry, if it lacks the artefact, and into the store."""
        manifest, digest = read_manifest(source), f"sha256:{file_sha256(source / MANIFEST)}"
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

    def sync(self, name: str) -> None:
        """Download the versions that the aliases mean if the store lacks them, and move its aliases."""
        with _failures():
            found = self._client.search_registered_models(f"name = '{name}'")
            aliases = found[0].aliases if found else {}
            for alias in (CURRENT, CANDIDATE):
                if alias in aliases:
                    self._mirror(name, alias, aliases[alias])

    def _mirror(self, name: str, alias: str, number: str) -> None:
        found = self._client.get_model_version(name, number)
        version, digest = found.tags.get(_VERSION, ""), found.tags.get(_DIGEST, "")
        if not is_folder_name(version):
            raise RegistryFailed(f"the registry's version {number} of {name} has no usable tag {_VERSION}")
        if self.digest(name, alias) == (version, digest):
            return
        log.info("registry: %s@%s is version %s (%s), %s", name, alias, number, version, digest)
        if version not in self.versions(name) or self.digest_of(name, version) != digest:
            self._download(name, version, digest, found.source)
        super().point(name, alias, version)

    def _download(self, name: str, version: str, digest: str, source: str) -> None:
        """Fetch and verify a version, and put it into the store without an alias."""
        from mlflow.artifacts import download_artifacts

        self.models.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=self.models, ignore_cleanup_errors=True) as folder:
            aside = Path(folder)
            (aside / name).mkdir()
            (aside / "got").mkdir()
            got = download_artifacts(artifact_uri=source, dst_path=str(aside / "got"), tracking_uri=self._uri)
            Path(got).rename(aside / name / version)
            artefact = open_version(aside, name, version)
            if artefact.digest != digest:
                raise RegistryFailed(f"the registry's {name} {version} is {artefact.digest} instead of {digest}")
            super().publish(artefact.path, alias=None)

    def resolve(self, name: str, target: str) -> str:
        """As the registry has it now; versions that only the store has count too."""
        self.sync(name)
        return super().resolve(name, target)

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


@contextmanager
def _failures() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        log.warning("registry: %s", error)
        why = "the model registry cannot be reached or refused the request; see the server's log"
        raise RegistryFailed(why) from error
