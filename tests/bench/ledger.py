"""Calls a second that the ledger opens and settles, with one caller and with many: python -m tests.bench.ledger

Each call waits for the disk twice. Beside it stands the same with one transaction a row. Rounds take turns.

    python -m tests.bench.ledger [--seconds 3] [--rounds 3] [--folder .] [--postgres]
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, aclosing
from pathlib import Path

from server.usage import writer
from server.usage.ledger import SqlLedger
from tests import postgres
from tests.ledgers import entry, settled


async def measure(target: Path | str, callers: int, seconds: float) -> float:
    """Calls a second."""
    async with aclosing(SqlLedger(target)) as ledger:
        await ledger.settle(settled(await ledger.open(entry("warm"))))
        begun, done = time.monotonic(), 0

        async def call_on(number: int) -> None:
            nonlocal done
            turn = 0
            while time.monotonic() < begun + seconds:
                turn += 1
                await ledger.settle(settled(await ledger.open(entry(f"{begun}-{number}-{turn}"))))
                done += 1

        await asyncio.gather(*(call_on(number) for number in range(callers)))
        return done / (time.monotonic() - begun)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(), help="where the SQLite file is made; the disk counts")
    parser.add_argument("--postgres", action="store_true", help="measure a PostgreSQL that does not sync, too")
    args = parser.parse_args()
    found: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    together = writer._BATCH
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=args.folder)))
        server = stack.enter_context(postgres.running()) if args.postgres else None
        for number in range(args.rounds):
            for callers in (1, 64):
                for name, batch in (("together", together), ("one a row", 1)):
                    writer._BATCH = batch
                    file = folder / f"{number}-{callers}-{batch}.sqlite"
                    found["SQLite", callers, name].append(asyncio.run(measure(file, callers, args.seconds)))
                    if server:
                        url = server.new_database()
                        found["PostgreSQL", callers, name].append(asyncio.run(measure(url, callers, args.seconds)))
    print("| database | callers | transactions | calls/s, median | range |\n| --- | ---: | --- | ---: | --- |")
    for (database, callers, name), values in sorted(found.items()):
        low, high = min(values), max(values)
        print(f"| {database} | {callers} | {name} | {statistics.median(values):.0f} | {low:.0f} to {high:.0f} |")


if __name__ == "__main__":
    main()
