"""House prices with a scikit-learn pipeline."""

import math
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from operator import attrgetter
from typing import Any

import joblib
import numpy as np
import sklearn
from threadpoolctl import ThreadpoolController

from server.engines.describe import describe, from_schema
from server.engines.interfaces import Feature, House, ModelTask, PriceEstimate
from server.errors import InvalidRequest, Violation
from server.runtime.artefact import Artefact, unusable
from server.runtime.lanes import Lanes

_FEATURES = tuple(field.name for field in fields(House))
_values = attrgetter(*_FEATURES)


class HousePricer:
    """A Pricer from an artefact: a pipeline from the 18 features to the logarithm of the price in US dollars.

    The interval's ends are the schema's offsets low_log and high_log, added to the predicted logarithm. Raises
    ModelUnavailable if the artefact does not fit or was made by another scikit-learn. Blocks: construct it on a
    thread.
    """

    def __init__(self, artefact: Artefact, lanes: Lanes) -> None:
        _check_library(artefact)
        features = tuple(
            Feature(item["name"], tuple(item.get("allowed_values", ())), item.get("minimum", 0), item.get("maximum", 0))
            for item in from_schema(artefact, "features")
        )
        if tuple(feature.name for feature in features) != _FEATURES:
            raise unusable(artefact.manifest.name, "its features are not those of the contract, in their order")
        self.description = describe(artefact, ModelTask.REGRESSION, "sklearn", features=features)
        self._offsets = np.array([0.0, from_schema(artefact, "low_log"), from_schema(artefact, "high_log")])
        # Unpickling runs code. open_artefact has checked the file against the manifest that training wrote.
        self._pipeline: Any = joblib.load(artefact.part("model.joblib"))
        self._threads = ThreadpoolController()
        self._lanes = lanes
        self._estimate([self._probe()])

    async def predict(self, houses: Sequence[House], *, deadline: float) -> list[PriceEstimate]:
        """One estimate a house, in order. Raises InvalidRequest with everything that is wrong with the houses."""
        if violations := [v for index, house in enumerate(houses) for v in self._violations(index, house)]:
            raise InvalidRequest(violations)
        return await self._lanes.run(partial(self._estimate, houses), deadline=deadline) if houses else []

    def _estimate(self, houses: Sequence[House]) -> list[PriceEstimate]:
        table = np.array([_values(house) for house in houses], dtype=object)
        with self._threads.limit(limits=1, user_api="openmp"):  # lanes are the parallelism
            logs = np.asarray(self._pipeline.predict(table), np.float64)
        prices = np.exp(logs[:, np.newaxis] + self._offsets)
        if prices.shape != (len(houses), 3) or not np.isfinite(prices).all():
            raise RuntimeError("the price model gave too few numbers or some that are not finite")
        return [PriceEstimate(price, low, high) for price, low, high in prices.tolist()]

    def _violations(self, index: int, house: House) -> list[Violation]:
        found = []
        for feature, value in zip(self.description.features, _values(house), strict=True):
            field = f"houses[{index}].{feature.name}"
            if feature.allowed_values:
                if value not in feature.allowed_values:
                    found.append(Violation(field, f"must be one of: {', '.join(feature.allowed_values)}"))
            elif not math.isfinite(value):
                found.append(Violation(field, "must be a finite number"))
        return found

    def _probe(self) -> House:
        """Some house that the model can price."""
        values: dict[str, Any] = {
            feature.name: feature.allowed_values[0] if feature.allowed_values else feature.minimum
            for feature in self.description.features
        }
        return House(**values)


def _check_library(artefact: Artefact) -> None:
    """scikit-learn promises nothing for pickles of another version: estimates could be silently wrong."""
    made_with = artefact.manifest.libraries.get("scikit-learn")
    if made_with != sklearn.__version__:
        raise unusable(
            artefact.manifest.name,
            f"it was made by scikit-learn {made_with or '(unknown)'}, and {sklearn.__version__} is installed",
        )
