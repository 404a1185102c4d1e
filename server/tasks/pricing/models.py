"""The model of house prices."""

from collections.abc import Callable

from server.domain.models import ModelTask
from server.domain.pricing import Pricer
from server.inference.scheduler import Scheduler
from server.models.artefact import Artefact
from server.models.spec import ModelSettings, ModelSpec

HOUSE_PRICES = "house-prices"


def house_prices(settings: ModelSettings, scheduler: Scheduler) -> ModelSpec[Pricer]:
    """Regression on ONNX."""

    def prepare() -> Callable[[Artefact], Pricer]:
        from server.tasks.pricing.engine import HousePricer

        return lambda artefact: HousePricer(artefact, scheduler)

    return ModelSpec(HOUSE_PRICES, ModelTask.REGRESSION, prepare, settings)
