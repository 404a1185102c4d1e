"""Make every artefact that Quintet serves: fetch weights and data by digest, train, evaluate, export, publish.

    python -m training                          everything that is missing
    python -m training --list                   show the plan and do nothing
    python -m training --only sentiment         one artefact; checks every byte and repairs
    python -m training --profile long           more epochs, better metrics
    python -m training --llm small              the language model with 135 million parameters

A run that is interrupted goes on where it stopped. A second checkout finds everything in the cache.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import TYPE_CHECKING

# Set before a numeric library loads: threads that wait for work must sleep soon, or they slow down those that work.
# They spin for some microseconds first: always sleeping costs a fifth of the speed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from server.domain.network import bypass_proxies_on_loopback
from training.catalogue import LLMS, RECIPES
from training.errors import TrainingError
from training.fetch.cache import Cache, default_root
from training.fetch.lock import Input, read_lock
from training.plan import Locations, State, Step, make_plan
from training.recipe import Kind

if TYPE_CHECKING:
    from training.run import Result

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit status."""
    options = _parser().parse_args(arguments)
    bypass_proxies_on_loopback(os.environ)
    try:
        return _main(options)
    except PackageNotFoundError as error:
        return _fail(f"the library {error.name} is missing. Install what training needs with: pip install '.[train]'")
    except TrainingError as error:
        return _fail(str(error))
    except OSError as error:
        from training.run import describe

        return _fail(describe(error))
    except KeyboardInterrupt:
        print("\ninterrupted. Run it again: it goes on where it stopped", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)  # a download may block for a minute; the files on disk are safe at any time


def _main(options: argparse.Namespace) -> int:
    inputs = read_lock()
    registry = os.environ.get("QUINTET_REGISTRY", "")
    locations = Locations(Cache(options.cache), options.data / "models", options.data / "index", registry)
    plan = _plan(options, inputs, locations)
    todo = [step for step in plan if step.state is not State.READY]
    if not todo and not options.list:
        print(f"everything is ready in {options.data} ({len(plan)} artefacts)")
        return 0
    from training import terminal  # late: a run that has nothing to do needs no terminal library

    terminal.show_plan(plan, options.profile)
    if options.list:
        return 0
    with _exclusive(todo, locations):
        plan = _plan(options, inputs, locations)  # another run may have built something meanwhile
        results = _carry_out(plan, options, inputs, locations)
    terminal.show_results(results, locations)
    failures: dict[str, list[str]] = {}
    for result in results:
        if result.failure:
            failures.setdefault(result.failure, []).append(result.step.recipe.name)
    for failure, names in failures.items():
        _fail(f"{', '.join(names)}: {failure}")
    return 1 if failures else 0


def _exclusive(todo: Sequence[Step], locations: Locations) -> AbstractContextManager[None]:
    """Only one run at a time fetches and builds; publishing from the cache needs no lock."""
    if not any(step.fetch or step.state is State.MISSING for step in todo):
        return nullcontext()
    return locations.cache.exclusive(lambda: print("another run is using the cache; waiting for it to end", flush=True))


def _carry_out(
    plan: Sequence[Step], options: argparse.Namespace, inputs: dict[str, Input], locations: Locations
) -> "list[Result]":
    from training.fetch.downloads import Downloader
    from training.fetch.fetcher import Fetcher
    from training.fetch.hub import Hub
    from training.fetch.package_index import PackageIndex, PipSettings, pip_settings
    from training.run import Run
    from training.terminal import show_progress

    with show_progress() as progress:
        settings = pip_settings() if any(step.fetch for step in plan) else PipSettings()
        downloader = Downloader(certificates=settings.certificates, proxy=settings.proxy)
        index = PackageIndex(downloader, settings.index_urls)
        fetcher = Fetcher(locations.cache, downloader, Hub(), index, progress)
        return Run(RECIPES, inputs, locations, fetcher, progress, profile=options.profile).carry_out(plan)


def _plan(options: argparse.Namespace, inputs: dict[str, Input], locations: Locations) -> list[Step]:
    by_default = {name for name, recipe in RECIPES.items() if recipe.by_default}
    selected = set(options.only) or by_default - (set(LLMS.values()) - {LLMS.get(_llm(options))})
    for name in list(selected):
        if RECIPES[name].kind is Kind.COLLECTION:  # it records the published embedder that made its vectors
            selected.update(RECIPES[name].needs)
    return make_plan(
        selected, RECIPES, inputs, locations, options.profile, check=bool(options.only), force=options.force
    )


def _llm(options: argparse.Namespace) -> str:
    """Which language model to make: none where a provider's is used."""
    if options.llm:
        return str(options.llm)
    return "off" if os.environ.get("QUINTET_LLM_BASE_URL") else os.environ.get("QUINTET_LLM", "default")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], choices=list(RECIPES), help="may be repeated")
    parser.add_argument("--profile", choices=("fast", "long"), default="fast", help="default: fast")
    parser.add_argument("--llm", choices=(*LLMS, "off"), help="default: QUINTET_LLM, else default")
    parser.add_argument("--cache", type=Path, default=default_root(), help="default: QUINTET_CACHE or ~/.cache/quintet")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("QUINTET_DATA", "data")),
        help="default: QUINTET_DATA, else data",
    )
    parser.add_argument("--list", action="store_true", help="show the plan and do nothing")
    parser.add_argument("--force", action="store_true", help="make the selected artefacts again")
    return parser


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
