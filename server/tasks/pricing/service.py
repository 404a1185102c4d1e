"""quintet.v1.PricingService"""

from typing import TYPE_CHECKING, Any

from quintet.v1 import pricing_pb2, pricing_pb2_grpc

from server.domain.context import current
from server.domain.pricing import House, values_of
from server.models.handle import Handle
from server.rpc.access import uses
from server.rpc.convert import model_ref
from server.rpc.service_spec import FREE, MethodSpec, ServiceSpec
from server.tenancy.tenants import Role

if TYPE_CHECKING:
    from server.tasks.pricing.engine import HousePricer


class PricingServicer(pricing_pb2_grpc.PricingServiceServicer):
    def __init__(self, pricer: "Handle[HousePricer]") -> None:
        self._pricer = pricer

    async def PredictPrice(
        self, request: pricing_pb2.PredictPriceRequest, context: Any
    ) -> pricing_pb2.PredictPriceResponse:
        deadline = current().deadline
        houses = [House(*values_of(house)) for house in request.houses]
        async with self._pricer.use(deadline) as pricer:
            estimates = await pricer.predict(houses, deadline=deadline)
            warnings = pricer.warnings(houses)
            model = model_ref(pricer.description.identity)
        return pricing_pb2.PredictPriceResponse(
            estimates=[
                pricing_pb2.PriceEstimate(price_usd=e.price_usd, low_usd=e.low_usd, high_usd=e.high_usd)
                for e in estimates
            ],
            model=model,
            warnings=[
                pricing_pb2.RangeWarning(field=w.field, value=w.value, minimum=w.minimum, maximum=w.maximum)
                for w in warnings
            ],
        )


def spec(pricer: "Handle[HousePricer]") -> ServiceSpec:
    """The service over the model of house prices."""
    methods = {"PredictPrice": MethodSpec(Role.CALL, FREE, (uses(pricer.name),))}
    return ServiceSpec(PricingServicer(pricer), methods, needs=(pricer,))
