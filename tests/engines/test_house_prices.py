"""The price model as it is published: bounds, categories, versions."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.engines.house_prices import HousePricer
from server.engines.interfaces import House, ModelTask
from server.errors import DeadlineExceeded, InvalidRequest, ModelUnavailable, Violation
from server.runtime.artefact import MANIFEST, Artefact, open_artefact
from server.runtime.lanes import Lanes
from server.runtime.publish import publish
from tests.engines.conftest import soon

HOUSE = House(1500, 9000, 6, 5, 1980, 1995, 900, 2, 2, 0, 3, 6, 1, "NAmes", "1Fam", "1Story", True, "TA")
GRAND = replace(
    HOUSE, above_ground_area_sqft=2600, overall_quality=9, neighborhood="NridgHt", kitchen_quality="Ex", year_built=2006
)


def changed(**values: Any) -> House:
    return replace(HOUSE, **values)


@pytest.fixture
def pricer(models: Path, lanes: Lanes) -> HousePricer:
    return HousePricer(open_artefact(models, "house-prices"), lanes)


async def violations(pricer: HousePricer, *houses: House) -> tuple[Violation, ...]:
    with pytest.raises(InvalidRequest) as caught:
        await pricer.predict(houses, deadline=soon())
    return caught.value.violations


async def test_better_houses_cost_more_and_order_is_kept(pricer: HousePricer) -> None:
    plain, grand, again = await pricer.predict([HOUSE, GRAND, HOUSE], deadline=soon())
    assert 80_000 < plain.price_usd < 250_000
    assert grand.price_usd > 1.5 * plain.price_usd
    assert again == plain
    for estimate in (plain, grand):
        assert 0 < estimate.low_usd < estimate.price_usd < estimate.high_usd


async def test_the_interval_is_that_of_the_schema(pricer: HousePricer, models: Path) -> None:
    schema = open_artefact(models, "house-prices").manifest.schema
    (estimate,) = await pricer.predict([HOUSE], deadline=soon())
    assert math.log(estimate.low_usd / estimate.price_usd) == pytest.approx(schema["low_log"])
    assert math.log(estimate.high_usd / estimate.price_usd) == pytest.approx(schema["high_log"])


async def test_many_houses_are_priced_as_each_alone(pricer: HousePricer) -> None:
    houses = [replace(HOUSE, lot_area_sqft=2000.0 + 100 * n, overall_quality=n % 10 + 1) for n in range(256)]
    together = await pricer.predict(houses, deadline=soon())
    for index in (0, 100, 255):
        assert await pricer.predict([houses[index]], deadline=soon()) == [together[index]]
    assert await pricer.predict([], deadline=soon()) == []


async def test_every_violation_is_reported_with_its_field(pricer: HousePricer) -> None:
    found = await violations(
        pricer,
        HOUSE,
        replace(HOUSE, neighborhood="Paris", kitchen_quality="ex"),
        replace(HOUSE, lot_area_sqft=math.nan, basement_area_sqft=math.inf),
    )
    assert [violation.field for violation in found] == [
        "houses[1].neighborhood",
        "houses[1].kitchen_quality",
        "houses[2].lot_area_sqft",
        "houses[2].basement_area_sqft",
    ]
    assert found[1].description == "must be one of: Po, Fa, TA, Gd, Ex"
    assert found[2].description == "must be a finite number"


@given(name=st.text(max_size=32), field=st.sampled_from(["neighborhood", "building_type", "house_style"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
async def test_a_category_is_known_or_refused(pricer: HousePricer, name: str, field: str) -> None:
    allowed = next(f.allowed_values for f in pricer.description.features if f.name == field)
    house = changed(**{field: name})
    if name in allowed:
        assert len(await pricer.predict([house], deadline=soon())) == 1
    else:
        assert [violation.field for violation in await violations(pricer, house)] == [f"houses[0].{field}"]


async def test_every_category_that_is_offered_can_be_priced(pricer: HousePricer) -> None:
    houses = [changed(**{f.name: v}) for f in pricer.description.features for v in f.allowed_values]
    assert len(houses) > 40
    assert len(await pricer.predict(houses, deadline=soon())) == len(houses)


async def test_the_description_lists_the_features(pricer: HousePricer) -> None:
    described = pricer.description
    assert (described.task, described.engine, len(described.features)) == (ModelTask.REGRESSION, "sklearn", 18)
    assert described.metrics["r2"] > 0.8


async def test_a_late_call_is_refused(pricer: HousePricer) -> None:
    with pytest.raises(DeadlineExceeded):
        await pricer.predict([HOUSE], deadline=0.0)


def altered(models: Path, folder: Path, **changes: Any) -> Artefact:
    """The published artefact with changes in its manifest."""
    source = shutil.copytree(open_artefact(models, "house-prices").path, folder / "made")
    manifest = json.loads((source / MANIFEST).read_text())
    (source / MANIFEST).write_text(json.dumps(manifest | changes))
    publish(source, folder / "models")
    return open_artefact(folder / "models", "house-prices")


@pytest.mark.parametrize(
    ("libraries", "named"), [({"scikit-learn": "0.24.2"}, r"scikit-learn 0\.24\.2"), ({}, "unknown")]
)
async def test_another_scikit_learn_is_refused(
    models: Path, lanes: Lanes, tmp_path: Path, libraries: dict[str, str], named: str
) -> None:
    with pytest.raises(ModelUnavailable, match=named) as caught:
        HousePricer(altered(models, tmp_path, libraries=libraries), lanes)
    assert "make train ONLY=house-prices" in caught.value.message


async def test_other_features_are_refused(models: Path, lanes: Lanes, tmp_path: Path) -> None:
    schema = open_artefact(models, "house-prices").manifest.schema
    schema["features"] = schema["features"][::-1]
    with pytest.raises(ModelUnavailable, match="its features are not those of the contract"):
        HousePricer(altered(models, tmp_path, schema=schema), lanes)
