"""House prices with gradient boosted trees on onnxruntime, without scikit-learn and without unpickling anything."""

import math
import time
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import onnxruntime

from server.domain.context import charge
from server.domain.errors import DeadlineExceeded, InvalidRequest, Violation
from server.domain.models import Feature, ModelTask
from server.domain.pricing import House, PriceEstimate
from server.inference.onnx_session import open_session
from server.inference.scheduler import Scheduler
from server.models.artefact import Artefact, unusable
from server.models.describe import describe, from_schema

_FEATURES = tuple(field.name for field in fields(House))
_values = attrgetter(*_FEATURES)
_Offsets = tuple[float, float, float]  # of the logarithms of the price, its low and its high
ON_THE_LOOP = 4
"""Requests of up to so many houses are priced on the event loop: that takes less than handing them to a lane would.
Medians of five rounds on two cores that others used, too: 1 house 0.09 ms, 4 houses 0.14 ms, and 0.49 ms for 1 house
through a lane; 256 houses take 4 ms. tests/bench/price.py measures it."""


class HousePricer:
    """A Pricer from an artefact: trees from 18 numbers to the logarithm of the price in US dollars.

    The schema's `codes` give the number for each category, `constant_log` is added to the trees' sum, and the
    interval's ends are the offsets low_log and high_log. Raises ModelUnavailable if the artefact does not fit. Blocks:
    construct it on a thread.
    """

    def __init__(self, artefact: Artefact, scheduler: Scheduler) -> None:
        features = tuple(
            Feature(item["name"], tuple(item.get("allowed_values", ())), item.get("minimum", 0), item.get("maximum", 0))
            for item in from_schema(artefact, "features")
        )
        if tuple(feature.name for feature in features) != _FEATURES:
            raise unusable(artefact.manifest.name, "its features are not those of the contract, in their order")
        codes: dict[str, dict[str, float]] = from_schema(artefact, "codes")
        if any(set(codes.get(feature.name, ())) != set(feature.allowed_values) for feature in features):
            raise unusable(artefact.manifest.name, "its codes are not those of its categories")
        self.description = describe(artefact, ModelTask.REGRESSION, "onnx", features=features)
        self._codes = [(index, codes[name]) for index, name in enumerate(_FEATURES) if name in codes]
        constant = from_schema(artefact, "constant_log")
        low, high = from_schema(artefact, "low_log"), from_schema(artefact, "high_log")
        self._offsets = constant, constant + low, constant + high
        self._session: onnxruntime.InferenceSession = open_session(artefact.part("model.onnx"))
        self._one = _OneHouse(self._session)
        self._scheduler = scheduler
        name = artefact.manifest.name
        # What lanes compute holds no engine: without a cycle of references an engine is gone at once.
        self._work = scheduler.computation(name, partial(_each, self._session, self._offsets))
        # Of their own, because lanes write theirs on their threads.
        self._counters = scheduler.counters[f"{name} on the loop"]
        probe = self._rows([self._probe()])
        if _estimate(self._session, self._offsets, probe) != _priced([self._one(probe[0])], self._offsets):
            raise unusable(name, "it prices a house differently when it is alone")

    async def predict(self, houses: Sequence[House], *, deadline: float) -> list[PriceEstimate]:
        """One estimate a house, in order. Raises InvalidRequest with everything that is wrong with the houses."""
        rows = self._rows(houses)
        if len(rows) > ON_THE_LOOP:
            (found,) = await self._scheduler.map(self._work, [rows], deadline=deadline)
            estimates: list[PriceEstimate] = found
            return estimates
        if time.monotonic() >= deadline:
            raise DeadlineExceeded("the deadline passed before the call began")
        if not rows:
            return []
        begun = time.perf_counter()
        if len(rows) == 1:
            estimates = _priced([self._one(rows[0])], self._offsets)
        else:
            estimates = _estimate(self._session, self._offsets, rows)
        seconds = time.perf_counter() - begun
        self._counters.batches[1] += 1
        self._counters.compute_seconds += seconds
        charge(compute=seconds)
        return estimates

    def _rows(self, houses: Sequence[House]) -> list[list[float]]:
        """The numbers of each house. Raises InvalidRequest."""
        rows = []
        for house in houses:
            row = list(_values(house))
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
        """Everything that is wrong with the houses, at least one of which is."""
        return InvalidRequest([v for index, house in enumerate(houses) for v in self._violations(index, house)])

    def _violations(self, index: int, house: House) -> list[Violation]:
        found = []
        for feature, value in zip(self.description.features, _values(house), strict=True):
            field = f"houses[{index}].{feature.name}"
            if feature.allowed_values:
                if value not in feature.allowed_values:
                    found.append(Violation(field, f"must be one of: {', '.join(feature.allowed_values)}"))
            elif not math.isfinite(value):
                found.append(Violation(field, "must be a finite number"))
        # Here and not in the contract: a rule over two fields would take validation as long as the trees take.
        if house.year_remodeled < house.year_built:
            found.append(Violation(f"houses[{index}].year_remodeled", "must not be before year_built"))
        return found

    def _probe(self) -> House:
        """Some house that the model can price."""
        values: dict[str, Any] = {
            feature.name: feature.allowed_values[0] if feature.allowed_values else feature.minimum
            for feature in self.description.features
        }
        return House(**values)


def _each(
    session: onnxruntime.InferenceSession, offsets: _Offsets, requests: Sequence[list[list[float]]]
) -> list[list[PriceEstimate]]:
    return [_estimate(session, offsets, rows) for rows in requests]


def _estimate(session: onnxruntime.InferenceSession, offsets: _Offsets, rows: list[list[float]]) -> list[PriceEstimate]:
    (column,) = session.run(["sum"], {"features": np.array(rows, np.float64)})
    sums = column.ravel().tolist()
    if len(sums) != len(rows):
        raise RuntimeError(f"the price model gave {len(sums)} numbers for {len(rows)} houses")
    return _priced(sums, offsets)


def _priced(sums: list[float], offsets: _Offsets) -> list[PriceEstimate]:
    if not all(map(math.isfinite, sums)):
        raise RuntimeError("the price model gave numbers that are not finite")
    price, low, high = offsets
    # One at a time: numpy takes longer for the three numbers of one house, and for 256 houses about as long.
    return [PriceEstimate(math.exp(log + price), math.exp(log + low), math.exp(log + high)) for log in sums]


class _OneHouse:
    """The trees' sum for one house at a time, between buffers that stay. For one thread.

    Between calls other code takes the processor's caches, and what onnxruntime does around a run costs 30 us instead of
    4; with its inputs and outputs bound beforehand it is 13 (docs/notes/pricing.md).
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._features = np.zeros((1, len(_FEATURES)), np.float64)
        self._sum = np.zeros((1, 1), np.float64)
        self._binding = session.io_binding()
        self._binding.bind_input("features", "cpu", 0, np.float64, self._features.shape, self._features.ctypes.data)
        self._binding.bind_output("sum", "cpu", 0, np.float64, self._sum.shape, self._sum.ctypes.data)

    def __call__(self, row: list[float]) -> float:
        self._features[0] = row
        self._session.run_with_iobinding(self._binding)
        return float(self._sum[0, 0])
