"""Kill a server at random moments while models are swapped and published, and check what is left each time.

Usage: python -m tests.campaigns.crash_swaps [--kills 100] [--seed 0]

Real servers answer Classify to two callers; SetAlias moves `current` between three versions without a pause, and
another process publishes ever new variants of the third. Both are killed with SIGKILL. Every answer must be that of one
whole version. After a kill every version on the disk must be whole, `current` must name the version that was
acknowledged last or the one that was under way, and the next server must serve it.
"""

import argparse
import itertools
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from quintet.v1 import classification_pb2, classification_pb2_grpc, model_pb2, model_pb2_grpc

from server.models.artefact import MANIFEST, file_sha256, open_version
from server.models.golden import GOLDEN
from server.models.store import CANDIDATE, CURRENT, ModelStore
from tests.conftest import ServerProcess, start_server
from tests.tiny_models import TEXTS, make

NAME = "tiny"
FIXED, REPLACED = ("1", "2"), "3"
VARIANTS = 16
CALLERS = 2
REQUEST = classification_pb2.ClassifyRequest(texts=TEXTS, model=NAME)
Answers = list[dict[str, float]]


@dataclass
class Expected:
    """What must be there: `current`, or `under_way` if a swap was; and what the artefact of each digest answers."""

    answers: dict[str, Answers]
    current: str = FIXED[0]
    under_way: str | None = None
    killed: threading.Event = field(default_factory=threading.Event)
    swaps: int = 0
    refused: int = 0
    calls: int = 0
    wrong: list[str] = field(default_factory=list)

    def is_gone(self, error: grpc.RpcError) -> bool:
        """Whether a call failed because the server was killed."""
        return self.killed.is_set() and error.code() is grpc.StatusCode.UNAVAILABLE

    def check_answer(self, answer: classification_pb2.ClassifyResponse) -> None:
        """Note an answer that no whole artefact gives."""
        self.calls += 1
        expected = self.answers.get(answer.model.digest, [])
        found = [{label.label: label.score for label in result.labels} for result in answer.results]
        same = len(found) == len(expected) and all(
            left.keys() == right.keys() and all(abs(left[label] - right[label]) < 1e-4 for label in left)
            for left, right in zip(found, expected, strict=True)
        )
        if not same:
            self.wrong.append(f"{answer.model.version} {answer.model.digest}: {found}")

    def check_disk(self, models: Path) -> None:
        """Every version opens; `current` is one of those that it may be. That one counts from now on."""
        store = ModelStore(models)
        for version in store.versions(NAME):
            open_version(store.models, NAME, version)  # raises if anything is not whole
        aliases = store.aliases(NAME)
        assert aliases[CURRENT] in {self.current, self.under_way or self.current}
        assert set(aliases.values()) <= set(store.versions(NAME))
        self.current, self.under_way = aliases[CURRENT], None


def prepare(folder: Path) -> Expected:
    """Make all artefacts, publish the first of each version; return what they answer."""
    made = [make(folder / "made" / version, version, name=NAME) for version in FIXED]
    made += [make(folder / "made" / f"3-{n}", REPLACED, name=NAME, variant=n) for n in range(VARIANTS)]
    for artefact in (*made[1:3], made[0]):  # the last one is current
        ModelStore(folder / "models").publish(artefact)
    return Expected(
        {
            f"sha256:{file_sha256(each / MANIFEST)}": json.loads((each / GOLDEN).read_bytes())["outputs"]["onnx"]
            for each in made
        }
    )


def publish_forever(folder: Path) -> None:
    """The other process: version 3 is replaced again and again, as a version of the same name that was made anew."""
    for number in itertools.cycle(range(VARIANTS)):
        ModelStore(folder / "models").publish(folder / "made" / f"3-{number}", CANDIDATE)


def campaign(folder: Path, kills: int, seed: int, most_seconds: float = 1.5) -> Expected:
    """Kill so many servers, each a random time after it served, and check after each."""
    chance = random.Random(seed)
    expected = prepare(folder)
    for _ in range(kills):
        with serving(folder) as server:
            _swap_until_killed(server, folder, expected, chance, chance.uniform(0, most_seconds))
        expected.check_disk(folder / "models")
        assert not expected.wrong, expected.wrong[:3]
    with serving(folder) as server, grpc.insecure_channel(server.address) as channel:
        _first_answer(channel, expected)
        previous = model_pb2.SetAliasRequest(name=NAME, alias=CURRENT, target="previous")
        model_pb2_grpc.ModelServiceStub(channel).SetAlias(previous, timeout=30)  # the history is whole, too
    return expected


@contextmanager
def serving(folder: Path) -> Iterator[ServerProcess]:
    """A server with this one model. It is killed in the end if it still runs."""
    log = folder / "log.txt"
    server = start_server(folder, log, llm="off", models=json.dumps({NAME: {}}))
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        assert server.process.stdout
        server.process.stdout.close()


def _swap_until_killed(
    server: ServerProcess, folder: Path, expected: Expected, chance: random.Random, seconds: float
) -> None:
    with grpc.insecure_channel(server.address) as channel:
        expected.killed.clear()
        _first_answer(channel, expected)
        command = [sys.executable, "-m", "tests.campaigns.crash_swaps", "--publish", str(folder)]
        publisher = subprocess.Popen(command)
        callers = [threading.Thread(target=_call, args=(channel, expected)) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        killer = threading.Timer(seconds, _kill, (expected, server.process, publisher))
        killer.start()
        try:
            _swap(channel, expected, chance)
        finally:
            killer.join()
            for caller in callers:
                caller.join()
    assert server.process.wait(30) == publisher.wait(30) == -signal.SIGKILL, "it ended by itself"


def _kill(expected: Expected, *processes: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> None:
    expected.killed.set()
    for process in processes:
        process.send_signal(signal.SIGKILL)


def _first_answer(channel: grpc.Channel, expected: Expected) -> None:
    """The server serves what the pointer says."""
    answer = classification_pb2_grpc.ClassificationServiceStub(channel).Classify(REQUEST, timeout=60)
    expected.check_answer(answer)
    assert answer.model.version == expected.current


def _call(channel: grpc.Channel, expected: Expected) -> None:
    """Classify until the server is gone. Swaps must not fail a call."""
    stub = classification_pb2_grpc.ClassificationServiceStub(channel)
    while True:
        try:
            expected.check_answer(stub.Classify(REQUEST, timeout=60))
        except grpc.RpcError as error:
            if not expected.is_gone(error):
                expected.wrong.append(f"Classify: {error}")
            return


def _swap(channel: grpc.Channel, expected: Expected, chance: random.Random) -> None:
    """Move the alias until the server is gone."""
    stub = model_pb2_grpc.ModelServiceStub(channel)
    while True:
        expected.under_way = chance.choice([each for each in (*FIXED, REPLACED) if each != expected.current])
        request = model_pb2.SetAliasRequest(name=NAME, alias=CURRENT, target=expected.under_way)
        try:
            expected.current = stub.SetAlias(request, timeout=60).model.ref.version
            expected.swaps += 1
        except grpc.RpcError as error:
            if expected.is_gone(error):
                return
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:  # it was replaced while it was being loaded
                expected.wrong.append(f"SetAlias: {error}")
            expected.refused += 1
        expected.under_way = None


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--publish", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.publish:
        publish_forever(args.publish)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        expected = campaign(Path(folder), args.kills, args.seed)
        seconds = time.monotonic() - start
    swaps = f"{expected.swaps} swaps and {expected.refused} refused"
    print(f"{args.kills} kills survived in {seconds:.0f} s; {swaps}, {expected.calls} calls")


if __name__ == "__main__":
    main()
