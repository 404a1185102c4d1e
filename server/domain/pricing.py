"""Pricing houses."""

from dataclasses import dataclass, fields
from operator import attrgetter


@dataclass(slots=True)  # frozen would cost 3 us a house
class House:
    """The 18 features, named and ordered as in quintet.v1.House; areas in square feet."""

    above_ground_area_sqft: float
    lot_area_sqft: float
    overall_quality: int
    overall_condition: int
    year_built: int
    year_remodeled: int
    basement_area_sqft: float
    garage_cars: int
    full_baths: int
    half_baths: int
    bedrooms: int
    total_rooms: int
    fireplaces: int
    neighborhood: str
    building_type: str
    house_style: str
    central_air: bool
    kitchen_quality: str


FEATURES = tuple(field.name for field in fields(House))
values_of = attrgetter(*FEATURES)  # of a House, or of anything with the same attributes


@dataclass(frozen=True, slots=True)
class PriceEstimate:
    """US dollars; low and high bound the 90 % prediction interval."""

    price_usd: float
    low_usd: float
    high_usd: float


@dataclass(frozen=True, slots=True)
class RangeWarning:
    """A feature of the request outside its range in the training data. `field` is its path: "houses[0].bedrooms"."""

    field: str
    value: float
    minimum: float
    maximum: float
