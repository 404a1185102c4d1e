"""Run the campaign: python -m tests.campaigns.chaos_ledger [--calls N] [--seed N]."""

import argparse
import asyncio
import os
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.campaigns.chaos_ledger.campaign import run
from tests.campaigns.chaos_ledger.report import show


def main() -> int:
    """Return 0 if the books agree."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.chaos_ledger", description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=5000, help="default: 5000")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="default: another each time")
    parser.add_argument("--models", type=Path, default=Path(os.environ.get("QUINTET_DATA", "data")) / "models")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-ledger-") as folder:
        books, sent = asyncio.run(run(Path(folder), options.models, options.calls, options.seed, report=print))
    show(books, sent, options.seed, time.monotonic() - begun)
    return 1 if books.faults else 0


if __name__ == "__main__":
    sys.exit(main())
