"""PredictPrice at the engine: python -m tests.bench.price

Prints the time of a call for the engine and for the scikit-learn pipeline that it was exported from, side by side.
"""

import asyncio

from tests.bench.measure import (  # first: it sets the threads of the numeric libraries
    MODELS,
    seconds_each,
    seconds_each_awaited,
    soon,
)

# isort: split
from dataclasses import astuple
from functools import partial
from typing import Any

import joblib
import numpy as np

from server.domain.pricing import House
from server.inference.scheduler import Scheduler
from server.models.artefact import open_artefact
from server.tasks.pricing.engine import ON_THE_LOOP, HousePricer

HOUSE = House(1500, 9000, 6, 5, 1980, 1995, 900, 2, 2, 0, 3, 6, 1, "NAmes", "1Fam", "1Story", True, "TA")


async def main() -> None:
    """Measure and print."""
    artefact = open_artefact(MODELS, "house-prices")
    scheduler = Scheduler(2, queue_limit=64)
    pricer = HousePricer(artefact, scheduler)
    pipeline: Any = joblib.load(artefact.part("model.joblib"))
    print("houses   engine, ms   scikit-learn, ms   ratio")
    for count in (1, ON_THE_LOOP, ON_THE_LOOP + 1, 64, 256):
        houses = [HOUSE] * count
        engine = await seconds_each_awaited(partial(pricer.predict, houses, deadline=soon()), 100)
        table = np.array([astuple(house) for house in houses], dtype=object)
        reference = seconds_each(partial(pipeline.predict, table), 10)
        print(f"{count:6}   {1e3 * engine:10.3f}   {1e3 * reference:16.2f}   {reference / engine:5.0f}")
    scheduler.close()


if __name__ == "__main__":
    asyncio.run(main())
