"""House prices with gradient boosted trees on onnxruntime, without scikit-learn and without unpickling anything."""

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import onnxruntime

from server.domain.context import charge
from server.domain.errors import DeadlineExceeded, InvalidRequest, Violation
from server.domain.models import Feature, ModelTask
from server.domain.pricing import FEATURES, House, PriceEstimate, RangeWarning, values_of
from server.inference.onnx_session import open_session
from server.inference.scheduler import Scheduler
from server.models.artefact import Artefact, unusable

ON_THE_LOOP = 4
"""Requests of up to so many houses are priced on the event loop, in 0.09 ms (1 house) to 0.14 ms (4 houses): handing
one to a lane takes 0.49 ms. 256 houses take 4 ms. Medians of five rounds; tests/bench/price.py measures it."""


class HousePricer:
    """Estimates prices from an artefact: trees from 18 numbers to the logarithm of the price in US dollars.

    The schema's `codes` give the number for each category, `constant_log` is added to the trees' sum, and the
    interval's ends are the offsets low_log and high_log. Raises ModelUnavailable if the artefact does not fit. It
    blocks: construct it on a thread.
    """

    def __init__(self, artefact: Artefact, scheduler: Scheduler) -> None:
        name = artefact.manifest.name
        features = tuple(
            Feature(item["name"], tuple(item.get("allowed_values", ())), item.get("minimum", 0), item.get("maximum", 0))
            for item in artefact.schema("features")
        )
        if tuple(feature.name for feature in features) != FEATURES:
            raise unusable(name, "its features are not those of the contract, in their order")
        codes: dict[str, dict[str, float]] = artefact.schema("codes")
        if any(set(codes.get(feature.name, ())) != set(feature.allowed_values) for feature in features):
            raise unusable(name, "its codes are not those of its categories")
        self.description = artefact.describe(ModelTask.REGRESSION, "onnx", features=features)
        # An artefact without ranges has 0 for both ends.
        self._ranges = [(i, f.minimum, f.maximum) for i, f in enumerate(features) if f.minimum < f.maximum]
        self._codes = [(index, codes[feature]) for index, feature in enumerate(FEATURES) if feature in codes]
        self._trees = _Trees(artefact)
        self._scheduler = scheduler
        self._counters = scheduler.counters[f"{name} on the loop"]  # apart, because lanes write theirs on their threads
        probe = self._rows([self._probe()])
        if self._trees.price(probe) != [self._trees.price_one(probe[0])]:
            raise unusable(name, "it prices a house differently when it is alone")

    async def predict(self, houses: Sequence[House], *, deadline: float) -> list[PriceEstimate]:
        """One estimate a house, in order. Raises InvalidRequest with everything that is wrong with the houses."""
        rows = self._rows(houses)
        if len(rows) > ON_THE_LOOP:
            name = self.description.identity.name
            return await self._scheduler.run(partial(self._trees.price, rows), deadline=deadline, name=name)
        if time.monotonic() >= deadline:
            raise DeadlineExceeded("the deadline passed before the call began")
        if not rows:
            return []
        begun = time.perf_counter()
        estimates = [self._trees.price_one(rows[0])] if len(rows) == 1 else self._trees.price(rows)
        seconds = time.perf_counter() - begun
        self._counters.batches[1] += 1
        self._counters.compute_seconds += seconds
        charge(compute=seconds)
        return estimates

    def warnings(self, houses: Sequence[House]) -> list[RangeWarning]:
        """The features outside the range of the training data: trees give every such value that of the range's end."""
        return [
            RangeWarning(f"houses[{number}].{FEATURES[index]}", value, low, high)
            for number, values in enumerate(map(values_of, houses))
            for index, low, high in self._ranges
            if not low <= (value := values[index]) <= high
        ]

    def _rows(self, houses: Sequence[House]) -> list[list[float]]:
        """The numbers of each house. Raises InvalidRequest."""
        rows = []
        for house in houses:
            row = list(values_of(house))
            try:
                for index, codes in self._codes:
                    row[index] = codes[row[index]]
            except KeyError:
                raise self._invalid(houses) from None
            if not all(map(math.isfinite, row)) or house.year_remodeled < house.year_built:
                raise self._invalid(houses)
            rows.append(row)
        return rows

    def _invalid(self, houses: Sequence[House]) -> InvalidRequest:
        found = []
        for index, house in enumerate(houses):
            for feature, value in zip(self.description.features, values_of(house), strict=True):
                field = f"houses[{index}].{feature.name}"
                if feature.allowed_values:
                    if value not in feature.allowed_values:
                        found.append(Violation(field, f"must be one of: {', '.join(feature.allowed_values)}"))
                elif not math.isfinite(value):
                    found.append(Violation(field, "must be a finite number"))
            # Here and not in the contract: validating a rule over two fields takes as long as the trees.
            if house.year_remodeled < house.year_built:
                found.append(Violation(f"houses[{index}].year_remodeled", "must not be before year_built"))
        return InvalidRequest(found)

    def _probe(self) -> House:
        """A house that the model can price."""
        values: dict[str, Any] = {
            feature.name: feature.allowed_values[0] if feature.allowed_values else feature.minimum
            for feature in self.description.features
        }
        return House(**values)


class _Trees:
    """The graph. price() may run on any thread; price_one() only on the event loop's.

    price_one() has its inputs and outputs bound beforehand: that takes 13 us instead of 30 in a busy server
    (docs/notes/pricing.md).
    """

    def __init__(self, artefact: Artefact) -> None:
        constant, low, high = (artefact.schema(key) for key in ("constant_log", "low_log", "high_log"))
        self._offsets = constant, constant + low, constant + high
        self._session: onnxruntime.InferenceSession = open_session(artefact.part("model.onnx"))
        self._features = np.zeros((1, len(FEATURES)), np.float64)
        self._sum = np.zeros((1, 1), np.float64)
        self._binding = self._session.io_binding()
        self._binding.bind_input("features", "cpu", 0, np.float64, self._features.shape, self._features.ctypes.data)
        self._binding.bind_output("sum", "cpu", 0, np.float64, self._sum.shape, self._sum.ctypes.data)

    def price(self, rows: list[list[float]]) -> list[PriceEstimate]:
        """Estimates of one house or more."""
        (column,) = self._session.run(["sum"], {"features": np.array(rows, np.float64)})
        sums = column.ravel().tolist()
        if len(sums) != len(rows):
            raise RuntimeError(f"the price model gave {len(sums)} numbers for {len(rows)} houses")
        return self._estimates(sums)

    def price_one(self, row: list[float]) -> PriceEstimate:
        """The estimate of one house."""
        self._features[0] = row
        self._session.run_with_iobinding(self._binding)
        return self._estimates([float(self._sum[0, 0])])[0]

    def _estimates(self, sums: list[float]) -> list[PriceEstimate]:
        if not all(map(math.isfinite, sums)):
            raise RuntimeError("the price model gave numbers that are not finite")
        price, low, high = self._offsets
        # Without numpy, which takes longer for three numbers, and for those of 256 houses about as long.
        return [PriceEstimate(math.exp(log + price), math.exp(log + low), math.exp(log + high)) for log in sums]
