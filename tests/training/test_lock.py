"""The lock file pins everything, and a malformed one is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from training.catalogue import LLMS, RECIPES
from training.errors import LockError
from training.fetch.lock import HubSource, Input, PackageSource, read_lock

DISTRIBUTION = {"package": "p", "version": "1", "file": "p.whl", "bytes": 5, "sha256": "0" * 64}


def test_every_file_has_a_size_and_a_digest() -> None:
    for item in read_lock().values():
        for content in item.files:
            assert re.fullmatch(r"[0-9a-f]{64}", content.sha256)
            assert content.bytes > 0
        for source in item.sources:
            if isinstance(source, HubSource):
                assert re.fullmatch(r"[0-9a-f]{40}", source.revision)
            else:
                assert all(re.fullmatch(r"[0-9a-f]{64}", distribution.sha256) for distribution in source.distributions)
        assert item.licence.url.startswith("https://")


def test_recipes_and_inputs_fit_together() -> None:
    inputs = read_lock()
    used = {name for recipe in RECIPES.values() for name in recipe.inputs}
    assert used == set(inputs)
    for name, recipe in RECIPES.items():
        earlier = list(RECIPES)[: list(RECIPES).index(name)]
        assert set(recipe.needs) <= set(earlier), f"{name} comes before what it needs"
    assert set(LLMS.values()) <= set(RECIPES)


def test_the_embedder_has_several_packages_and_the_language_model_is_joined() -> None:
    inputs = read_lock()
    assert sum(isinstance(source, PackageSource) for source in inputs["minilm"].sources) == 4
    model = inputs[LLMS["default"]]
    packages = next(source for source in model.sources if isinstance(source, PackageSource))
    assert len(packages.members_of("model.gguf")) == len(packages.distributions) == 22


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("files", 0, "sha256"), "abc"),
        (("files", 0, "bytes"), 0),
        (("files", 0, "colour"), "red"),
        (("sources", 0, "revision"), "main"),
        (("sources", 1, "distributions", 0, "sha256"), "0" * 63),
        (("sources", 1, "distributions", 0, "file"), "../p.whl"),
        (("sources", 1, "names"), {"w": ["a", "b"]}),
        (("sources", 1, "names"), {"w": "."}),
        (("sources", 1, "distributions"), [DISTRIBUTION] * 2),
        (("sources", 1, "distributions", 0, "member"), "../w"),
        (("sources", 1, "folder"), "../"),
        (("sources",), []),
    ],
)
def test_a_malformed_lock_is_refused(
    lock: Callable[..., Input], tmp_path: Path, path: tuple[str | int, ...], value: object
) -> None:
    lock({"w": b"w"}, {"hub": "a/b", "revision": "0" * 40}, {"distributions": [DISTRIBUTION]})
    raw = json.loads((tmp_path / "lock.json").read_text())
    place = raw["inputs"][0]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "lock.json").write_text(json.dumps(raw))
    with pytest.raises(LockError):
        read_lock(tmp_path / "lock.json")
