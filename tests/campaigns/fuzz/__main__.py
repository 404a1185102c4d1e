"""Run the campaign: python -m tests.campaigns.fuzz [--payloads N] [--minutes N] [--seed N]."""

import argparse
import asyncio
import os
import secrets
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.campaigns.fuzz.campaign import Campaign, Found
from tests.campaigns.fuzz.provider import serving
from tests.conftest import start_server, wait_ready

# Memory of the last fifth of a run may be this much over that of the second fifth.
MOST_GROWTH, MOST_GROWTH_MIB = 1.1, 24.0
FEWEST_SAMPLES = 50  # with fewer a run is too short to tell growth from filling caches


def main() -> int:
    """Return 0 if the server passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--payloads", type=int, default=1_000_000, help="default: 1000000")
    parser.add_argument("--minutes", type=float, default=10.0, help="longest time; default: 10")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="default: another each time")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("QUINTET_DATA", "data")))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        found, status = run(Path(folder), options.data, options.seed, options.payloads, 60 * options.minutes)
    if status:
        found.fault("crash", f"the server ended with status {status}")
    check_growth(found)
    show(found)
    return 1 if found.faults or found.sent < options.payloads else 0


def run(folder: Path, data: Path, seed: int, payloads: int, seconds: float) -> tuple[Found, int]:
    """Start a server with real models and a provider that answers at once, and fuzz it; also its exit status."""
    (folder / "models").symlink_to((data / "models").resolve())
    if (data / "index" / "wikipedia").exists():
        shutil.copytree(data / "index" / "wikipedia", folder / "index" / "wikipedia")
    log = folder / "log.txt"
    with serving() as provider:
        server = start_server(folder, log, llm_base_url=provider, llm_model="fuzz", log_level="WARNING")
        try:
            wait_ready(server.address)
            campaign = Campaign(server.address, server.process.pid, log, seed=seed, payloads=payloads, seconds=seconds)
            found = asyncio.run(campaign.run(lambda line: print(line, flush=True)))
        finally:
            status = server.stop(60)
    return found, status


def check_growth(found: Found) -> None:
    """Compare the last fifth of the run with the second one; the first fills caches."""
    memory = [mib for _, mib in found.memory]
    if len(memory) >= FEWEST_SAMPLES:
        fifth = len(memory) // 5
        early, late = statistics.median(memory[fifth : 2 * fifth]), statistics.median(memory[-fifth:])
        if late > max(early * MOST_GROWTH, early + MOST_GROWTH_MIB):
            found.fault("growth", f"from {early:.0f} to {late:.0f} MiB")


def show(found: Found) -> None:
    """Print the tables of a campaign."""
    print(f"\n{found.payloads:,} payloads ({found.sent_bytes / 2**20:,.0f} MiB) to {len(found.by_method)} methods,")
    print(f"{found.breaks:,} broken connections; health checks: longest {max(found.probes) * 1000:.0f} ms\n")
    codes = [code for code, _ in found.codes.most_common()]
    for code in codes:
        print(f"  {code:24}{found.codes[code]:>12,}")
    print("\nOK by method, in percent:")
    for method, counts in sorted(found.by_method.items()):
        print(f"  {method:52}{_percent(counts):>5.1f} of {counts.total():,}")
    memory = [mib for _, mib in found.memory]
    print(f"\nmemory: first {memory[0]:.0f}, most {max(memory):.0f}, last {memory[-1]:.0f} MiB")
    print("\n".join(["", *found.faults]) if found.faults else "\nno faults")
    for kind, count in found.kinds.items():
        print(f"  {kind}: {count} in all")


def _percent(counts: Counter[str]) -> float:
    return 100 * counts["OK"] / max(1, counts.total())


if __name__ == "__main__":
    sys.exit(main())
