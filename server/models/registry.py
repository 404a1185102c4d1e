"""Where versions and aliases come from: the store's folder alone, or a registry that is mirrored into it.

Serving reads only the store, so an outage of the registry changes nothing of what is served.
"""

import importlib.util
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server.domain.errors import ModelVersionNotFound, RegistryFailed
from server.models.artefact import MANIFEST, file_sha256, is_folder_name, open_version, read_manifest
from server.models.publish import publish
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


class Registry:
    """Versions and aliases of models; this one is the store's folder. Every method blocks: call it on a thread."""

    def __init__(self, store: ModelStore) -> None:
        self.store = store

    def publish(self, folder: Path, alias: str = CURRENT) -> None:
        """Publish a finished artefact, named by `alias`."""
        publish(folder, self.store.models, alias)

    def sync(self, name: str) -> None:
        """Mirror what the aliases of `name` mean now into the store. Raises RegistryFailed."""

    def resolve(self, name: str, target: str) -> str:
        """The version that a version or an alias means. Raises ModelVersionNotFound and RegistryFailed."""
        return self.store.resolve(name, target)

    def point(self, name: str, alias: str, version: str) -> None:
        """Move an alias. Raises RegistryFailed, StorageFull and ModelUnavailable."""
        self.store.point(name, alias, version)


def open_registry(models: Path, uri: str = "") -> Registry:
    """The MLflow server at `uri`, or without one the folder. Raises RegistryFailed."""
    store = ModelStore(models)
    if not uri:
        return Registry(store)
    if importlib.util.find_spec("mlflow") is None:
        raise RegistryFailed("a registry needs more packages: pip install 'quintet[registry]'")
    return MlflowRegistry(store, uri)


class MlflowRegistry(Registry):
    """Registered models and their aliases on the MLflow server at `uri`.

    A model version there is an artefact's folder; tags have the artefact's version and digest.
    """

    def __init__(self, store: ModelStore, uri: str) -> None:
        super().__init__(store)
        self._uri = uri
        self._lock = threading.Lock()
        self._made: Any = None

    def publish(self, folder: Path, alias: str = CURRENT) -> None:
        """Into the registry, if it lacks the artefact, and into the store."""
        manifest, digest = read_manifest(folder), f"sha256:{file_sha256(folder / MANIFEST)}"
        with self._failures():
            client = self._client()
            if not client.search_registered_models(f"name = '{manifest.name}'"):
                client.create_registered_model(manifest.name)
            number = next((n for n, tags in self._versions(manifest.name).items() if tags.get(_DIGEST) == digest), None)
            if number is None:
                experiment = client.get_experiment_by_name("quintet")
                run = client.create_run(experiment.experiment_id if experiment else client.create_experiment("quintet"))
                client.log_artifacts(run.info.run_id, str(folder), manifest.name)
                client.set_terminated(run.info.run_id)
                tags = {_VERSION: manifest.version, _DIGEST: digest}
                source = f"{run.info.artifact_uri}/{manifest.name}"
                number = client.create_model_version(manifest.name, source, run.info.run_id, tags=tags).version
            client.set_registered_model_alias(manifest.name, alias, number)
        publish(folder, self.store.models, alias)

    def sync(self, name: str) -> None:
        """Download the versions that the aliases mean if the store lacks them, and move its aliases."""
        with self._failures():
            found = self._client().search_registered_models(f"name = '{name}'")
            aliases = found[0].aliases if found else {}
            for alias in (CURRENT, CANDIDATE):
                if alias in aliases:
                    self._mirror(name, alias, aliases[alias])

    def _mirror(self, name: str, alias: str, number: str) -> None:
        found = self._client().get_model_version(name, number)
        version, digest = found.tags.get(_VERSION, ""), found.tags.get(_DIGEST, "")
        if not is_folder_name(version):
            raise RegistryFailed(f"the registry's version {number} of {name} has no usable tag {_VERSION}")
        if self.store.digest(name, alias) == (version, digest):
            return
        log.info("registry: %s@%s is version %s (%s), %s", name, alias, number, version, digest)
        if version not in self.store.versions(name) or self.store.digest_of(name, version) != digest:
            self._download(name, version, digest, found.source)
        self.store.point(name, alias, version)

    def _download(self, name: str, version: str, digest: str, source: str) -> None:
        """Fetch and verify a version, and put it into the store without an alias."""
        from mlflow.artifacts import download_artifacts

        self.store.models.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".download-", dir=self.store.models))
        try:
            (aside / name).mkdir()
            (aside / "got").mkdir()
            got = download_artifacts(artifact_uri=source, dst_path=str(aside / "got"), tracking_uri=self._uri)
            Path(got).rename(aside / name / version)
            artefact = open_version(aside, name, version)
            if artefact.digest != digest:
                raise RegistryFailed(f"the registry's {name} {version} is {artefact.digest} instead of {digest}")
            publish(artefact.path, self.store.models, alias=None)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def resolve(self, name: str, target: str) -> str:
        """As the registry has it now; versions that only the store has count too."""
        self.sync(name)
        return self.store.resolve(name, target)

    def point(self, name: str, alias: str, version: str) -> None:
        """In the registry, then in the store."""
        digest = self.store.digest_of(name, version)
        with self._failures():
            numbers = [n for n, tags in self._versions(name).items() if tags.get(_DIGEST) == digest]
            if not numbers:
                raise ModelVersionNotFound(name, version, [t.get(_VERSION, "") for t in self._versions(name).values()])
            self._client().set_registered_model_alias(name, alias, numbers[0])
        self.store.point(name, alias, version)

    def _versions(self, name: str) -> dict[str, dict[str, str]]:
        """The tags of every version by its number, newest first."""
        found = self._client().search_model_versions(f"name = '{name}'", order_by=["version_number DESC"])
        return {version.version: version.tags for version in found}

    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                for name, value in _ENVIRONMENT.items():
                    os.environ.setdefault(name, value)
                from mlflow import MlflowClient

                self._made = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
            return self._made

    @staticmethod
    @contextmanager
    def _failures() -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            log.warning("registry: %s", error)
            why = "the model registry cannot be reached or refused the request; see the server's log"
            raise RegistryFailed(why) from error
