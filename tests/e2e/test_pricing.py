"""PredictPrice, through a real channel to a real server with real models."""

import grpc
from quintet.v1 import pricing_pb2, pricing_pb2_grpc

from tests.e2e.tasks import HOUSE, TIMEOUT, made_by


def test_predict_price_is_near_what_such_a_house_sold_for(channel: grpc.Channel) -> None:
    stub = pricing_pb2_grpc.PricingServiceStub(channel)
    poor = pricing_pb2.House()
    poor.CopyFrom(HOUSE)
    poor.overall_quality = 3
    poor.kitchen_quality = "Fa"
    answer = stub.PredictPrice(pricing_pb2.PredictPriceRequest(houses=[HOUSE, poor]), timeout=TIMEOUT)
    good, bad = answer.estimates
    assert 180_000 < good.price_usd < 240_000  # a house of Ames with these features sold for 208,500 dollars
    assert good.low_usd < good.price_usd < good.high_usd
    assert bad.price_usd < good.price_usd
    assert made_by(answer.model, "house-prices")
    assert not answer.warnings


def test_features_outside_the_training_range_are_listed(channel: grpc.Channel) -> None:
    stub = pricing_pb2_grpc.PricingServiceStub(channel)
    palace = pricing_pb2.House()
    palace.CopyFrom(HOUSE)
    palace.above_ground_area_sqft = 20_000
    palace.year_remodeled = 2090
    answer = stub.PredictPrice(pricing_pb2.PredictPriceRequest(houses=[HOUSE, palace]), timeout=TIMEOUT)
    found = [(warning.field, warning.value, warning.minimum, warning.maximum) for warning in answer.warnings]
    assert found == [
        ("houses[1].above_ground_area_sqft", 20_000, 334, 5642),
        ("houses[1].year_remodeled", 2090, 1950, 2010),
    ]
