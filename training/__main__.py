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
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import TYPE_CHECKING

# Before any numeric library loads: threads that wait for work must soon sleep, or two of them starve each other. They
# may spin for some microseconds first: always sleeping costs a fifth of the speed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from training.catalogue import LLMS, RECIPES
from training.errors import TrainingError
from training.fetch.cache import Cache, default_root
from training.fetch.lock import Input, read_lock
from training.plan import Places, State, Step, make_plan
from training.recipe import Kind

if TYPE_CHECKING:
    from training.run import Result

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        inputs = read_lock()
        registry = os.environ.get("QUINTET_REGISTRY", "")
        places = Places(Cache(options.cache), options.data / "models", options.data / "index", registry)
        plan = _plan(options, inputs, places)
        todo = [step for step in plan if step.state is not State.READY]
        if options.list or todo:
            from training.summary import show_plan  # not needed, and not waited for, where all is ready

            show_plan(plan, options.profile)
        if options.list:
            return 0
        if not todo:
            print(f"everything is ready in {options.data} ({len(plan)} artefacts)")
            return 0
        with _alone_if_needed(todo, places):
            plan = _plan(options, inputs, places)  # what another run made is there now
            results = _carry_out(plan, options, inputs, places)
    except PackageNotFoundError as error:
        return _fail(f"the library {error.name} is missing. Install what training needs with: pip install '.[train]'")
    except TrainingError as error:
        return _fail(str(error))
    except OSError as error:
        from training.run import describe

        return _fail(f"{describe(error)}. Make room or correct the path, then run it again")
    except KeyboardInterrupt:
        print("\ninterrupted. Run it again: it goes on where it stopped", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)  # a download may sit in a read for a minute; what is on disk is safe at any time
    from training.summary import show_results

    show_results(results, places)
    failures = [result for result in results if result.failure]
    for result in failures:
        _fail(f"{result.step.recipe.name}: {result.failure}")
    return 1 if failures else 0


def _alone_if_needed(todo: Sequence[Step], places: Places) -> AbstractContextManager[None]:
    """One run at a time fetches and makes; what is in the cache can be published beside it."""
    if not any(step.fetch or step.state is State.MISSING for step in todo):
        return nullcontext()
    return places.cache.exclusive(lambda: print("another run is using the cache; waiting for it to end", flush=True))


def _carry_out(
    plan: Sequence[Step], options: argparse.Namespace, inputs: dict[str, Input], places: Places
) -> "list[Result]":
    from rich.console import Console

    from training.fetch.fetcher import Fetcher
    from training.fetch.http import Client
    from training.fetch.hub import Hub
    from training.fetch.package_index import PackageIndex, PipSettings, pip_settings
    from training.progress import show_progress
    from training.run import Run

    stop = threading.Event()
    with show_progress(Console()) as progress:
        settings = pip_settings() if any(step.fetch for step in plan) else PipSettings()
        client = Client(stop, certificates=settings.certificates, proxy=settings.proxy)
        index = PackageIndex(client, settings.index_urls)
        fetcher = Fetcher(places.cache, client, Hub(), index, progress)
        try:
            return Run(RECIPES, inputs, places, fetcher, progress, profile=options.profile).carry_out(plan)
        finally:
            stop.set()


def _plan(options: argparse.Namespace, inputs: dict[str, Input], places: Places) -> list[Step]:
    by_default = {name for name, recipe in RECIPES.items() if not recipe.by_name}
    selected = set(options.only) or by_default - (set(LLMS.values()) - {LLMS.get(_llm(options))})
    for name in list(selected):
        if RECIPES[name].kind is Kind.COLLECTION:  # it records which published embedder made its vectors
            selected.update(RECIPES[name].needs)
    return make_plan(selected, RECIPES, inputs, places, options.profile, check=bool(options.only), force=options.force)


def _llm(options: argparse.Namespace) -> str:
    """Which language model to have; none is needed where a provider's is used."""
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
    parser.add_argument("--force", action="store_true", help="make the selected artefacts anew")
    return parser


def _fail(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
