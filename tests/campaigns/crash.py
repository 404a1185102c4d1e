"""Kill a writer of a collection at random moments, and check what is left each time.

Usage: python -m tests.campaigns.crash [--kills 500] [--seed 0]

A child process adds, replaces, deletes, folds, rolls back and reindexes through the real engine, and prints what it
begins and what was acknowledged. It is killed with SIGKILL. What is on the disk then must be exactly what was
acknowledged, or that with the one operation that was under way, whole; every generation must open and have the content
of its number.
"""

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from server.domain.errors import GenerationNotFound
from server.domain.rag import Document, IndexIdentity
from server.inference.scheduler import Scheduler
from server.tasks.rag.engine import RagEngine
from server.vectorstore import manager
from server.vectorstore.collection import Collection
from server.vectorstore.layout import segment_folder
from server.vectorstore.segment import Content, kept_generations, read_segment
from server.vectorstore.snapshot import Memtable, Snapshot
from tests.tasks.rag.hashing import HashingEmbedder, hashed

NAME = "notes"
State = dict[str, str]


async def work(index: Path, seed: int) -> None:
    """The child: operations without end."""
    manager.FOLD_PASSAGES = 40  # folds now and then by itself
    chance = random.Random(seed)
    engine = RagEngine(index, HashingEmbedder(), Scheduler(1, 16))
    await engine.open()
    while True:
        deadline = time.monotonic() + 30
        ids = [str(each) for each in chance.sample(range(60), chance.randint(1, 12))]
        kind = chance.choices(["add", "delete", "compact", "rollback", "reindex"], [20, 8, 2, 2, 1])[0]
        if kind != "add" and not engine.list_collections():
            continue
        operation: dict[str, Any] = {"kind": kind}
        if kind == "add":
            operation["documents"] = {each: f"text {chance.random()}" for each in ids}
        elif kind == "delete":
            operation["ids"] = ids
        elif kind == "rollback":
            _, kept = await engine.list_generations(NAME)
            operation["generation"] = chance.choice(kept).generation
        print(json.dumps(operation), flush=True)
        if kind == "add":
            documents = [Document(*each) for each in operation["documents"].items()]
            number = (await engine.ingester.add(NAME, documents, deadline=deadline)).index.generation
        elif kind == "delete":
            number = (await engine.ingester.delete(NAME, ids, deadline=deadline)).index.generation
        elif kind == "compact":
            number = (await engine.compact(NAME, deadline=deadline)).index.generation
        elif kind == "reindex":
            *_, last = [event async for event in engine.reindexer.observe(NAME)]
            assert isinstance(last, IndexIdentity)
            number = last.generation
        else:
            try:
                number = (await engine.rollback(NAME, operation["generation"], deadline=deadline)).generation
            except GenerationNotFound:  # a fold in the background has just removed it
                print(json.dumps({"kind": "refused"}), flush=True)
                continue
        print(number, flush=True)


@dataclass
class Expected:
    """What must be there: `states` by number, and the operation that was under way when the child was killed."""

    number: int = 0
    states: dict[int, State] = field(default_factory=lambda: {0: {}})
    under_way: dict[str, Any] | None = None

    def after(self, operation: dict[str, Any]) -> State:
        """The present state with an operation carried out."""
        state = dict(self.states[self.number])
        match operation["kind"]:
            case "add":
                state |= operation["documents"]
            case "delete":
                state = {key: text for key, text in state.items() if key not in operation["ids"]}
            case "rollback":
                state = self.states[operation["generation"]]
        return state

    def read(self, line: str) -> None:
        """A line of the child: an operation that begins, or the generation that one was acknowledged with."""
        said = json.loads(line)
        if isinstance(said, dict):
            self.under_way = said
        else:
            assert self.under_way is not None
            self.settle(said)

    def settle(self, number: int) -> None:
        """The operation under way was carried out."""
        assert self.under_way is not None
        state = self.after(self.under_way)
        assert number in {self.number, self.number + 1}, "numbers grow by one"
        assert number > self.number or state == self.states[self.number]
        self.number, self.states[number], self.under_way = number, state, None

    def check(self, index: Path) -> None:
        """Compare with the disk; what was under way counts from now on if it is there."""
        if not (index / NAME).exists():
            assert self.number == 0
            return
        collection = Collection(index / NAME)
        faults = [fault for fault in collection.faults if "an incomplete write" not in fault]
        assert faults == []
        found = content_of(collection.snapshot.content())
        if self.under_way is not None and collection.snapshot.generation == self.number + 1:
            self.settle(self.number + 1)
        assert collection.snapshot.generation == self.number
        assert found == self.states[self.number]
        self.under_way = None
        for kept in kept_generations(collection.folder):
            whole = read_segment(segment_folder(collection.folder, kept.generation), NAME)
            assert content_of(Snapshot(Memtable(whole)).content()) == self.states[kept.generation]


def content_of(content: Content) -> State:
    """Texts by id; none may be there twice, and every vector must be that of its passage."""
    documents = list(content.documents)
    vectors = np.concatenate([np.empty((0, content.dimensions), np.float32), *content.vectors])
    texts = [documents[owner].text[start:end] for owner, start, end in content.passages.tolist()]
    if documents:
        assert np.allclose(vectors, hashed(texts))
    state = {document.id: document.text for document in documents}
    assert len(state) == len(documents)
    return state


def campaign(index: Path, kills: int, seed: int, most_seconds: float = 1.0) -> Expected:
    """Kill so many children, each after a random time, and check after each."""
    chance = random.Random(seed)
    expected = Expected()
    for kill in range(kills):
        command = [
            sys.executable,
            "-m",
            "tests.campaigns.crash",
            "--work",
            str(index),
            "--seed",
            str(seed * 100_003 + kill),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            first = child.stdout.readline()
            time.sleep(chance.uniform(0, most_seconds))
            child.send_signal(signal.SIGKILL)
            for line in (first, *child.stdout):
                if line.endswith("\n"):  # else it was killed in the middle of the line
                    expected.read(line)
        assert child.returncode == -signal.SIGKILL, "it ended by itself"
        expected.check(index)
    return expected


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        asyncio.run(work(args.work, args.seed))
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        expected = campaign(Path(folder), args.kills, args.seed)
        seconds = time.monotonic() - start
    print(f"{args.kills} kills survived in {seconds:.0f} s; {expected.number} writes, {len(expected.states)} states")


if __name__ == "__main__":
    main()
