"""The price model as it is published: bounds, categories, versions."""

import json
import math
import shutil
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.domain.errors import DeadlineExceeded, InvalidRequest, ModelUnavailable, ServerStopping, Violation
from server.domain.models import ModelTask
from server.domain.pricing import House, RangeWarning
from server.inference.scheduler import Scheduler
from server.models.artefact import MANIFEST, Artefact, open_artefact
from server.models.store import ModelStore
from server.tasks.pricing.engine import ON_THE_LOOP, HousePricer
from tests.small_artefacts import is_gone_when_dropped, soon

HOUSE = House(1500, 9000, 6, 5, 1980, 1995, 900, 2, 2, 0, 3, 6, 1, "NAmes", "1Fam", "1Story", True, "TA")
GRAND = replace(
    HOUSE,
    above_ground_area_sqft=2600,
    overall_quality=9,
    neighborhood="NridgHt",
    kitchen_quality="Ex",
    year_built=2006,
    year_remodeled=2006,
)


def changed(**values: Any) -> House:
    return replace(HOUSE, **values)


@pytest.fixture
def pricer(models: Path, scheduler: Scheduler) -> HousePricer:
    return HousePricer(open_artefact(models, "house-prices"), scheduler)


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
    assert (described.task, described.engine, len(described.features)) == (ModelTask.REGRESSION, "onnx", 18)
    assert described.metrics["r2"] >= 0.90
    assert 0.87 <= described.metrics["interval_coverage"] <= 0.93


def test_a_dropped_engine_is_gone_at_once(models: Path, scheduler: Scheduler) -> None:
    assert is_gone_when_dropped(lambda: HousePricer(open_artefact(models, "house-prices"), scheduler))


def test_every_number_outside_its_range_gives_a_warning(pricer: HousePricer) -> None:
    ranges = {f.name: (f.minimum, f.maximum) for f in pricer.description.features if not f.allowed_values}
    assert pricer.warnings([HOUSE, GRAND]) == []
    for name, (low, high) in ranges.items():
        inside = [changed(**{name: low}), changed(**{name: high})]
        assert pricer.warnings(inside) == []
        outside = [HOUSE, changed(**{name: low - 1}), changed(**{name: high + 1})]
        assert pricer.warnings(outside) == [
            RangeWarning(f"houses[1].{name}", low - 1, low, high),
            RangeWarning(f"houses[2].{name}", high + 1, low, high),
        ]


def test_an_artefact_without_ranges_gives_no_warnings(models: Path, scheduler: Scheduler, tmp_path: Path) -> None:
    schema = open_artefact(models, "house-prices").manifest.schema
    for feature in schema["features"]:
        feature.pop("minimum", None)
        feature.pop("maximum", None)
    pricer = HousePricer(altered(models, tmp_path, schema=schema), scheduler)
    assert pricer.warnings([changed(lot_area_sqft=1e6)]) == []


async def test_a_late_call_is_refused(pricer: HousePricer) -> None:
    with pytest.raises(DeadlineExceeded):
        await pricer.predict([HOUSE], deadline=0.0)


def altered(models: Path, folder: Path, **changes: Any) -> Artefact:
    """The published artefact with changes in its manifest."""
    source = shutil.copytree(open_artefact(models, "house-prices").path, folder / "made")
    manifest = json.loads((source / MANIFEST).read_text())
    (source / MANIFEST).write_text(json.dumps(manifest | changes))
    ModelStore(folder / "models").publish(source)
    return open_artefact(folder / "models", "house-prices")


async def test_other_features_are_refused(models: Path, scheduler: Scheduler, tmp_path: Path) -> None:
    schema = open_artefact(models, "house-prices").manifest.schema
    schema["features"] = schema["features"][::-1]
    with pytest.raises(ModelUnavailable, match="its features are not those of the contract") as caught:
        HousePricer(altered(models, tmp_path, schema=schema), scheduler)
    assert "make train ONLY=house-prices" in caught.value.message


async def test_codes_of_other_categories_are_refused(models: Path, scheduler: Scheduler, tmp_path: Path) -> None:
    schema = open_artefact(models, "house-prices").manifest.schema
    schema["codes"]["neighborhood"].popitem()
    with pytest.raises(ModelUnavailable, match="its codes are not those of its categories"):
        HousePricer(altered(models, tmp_path, schema=schema), scheduler)


@pytest.fixture(scope="module")
def reference(models: Path) -> Any:
    """The pipeline of scikit-learn from which the graph was exported."""
    return joblib.load(open_artefact(models, "house-prices").part("model.joblib"))


def houses_of(models: Path) -> st.SearchStrategy[House]:
    """Houses with every category, in the ranges of the data and around and beyond their ends."""
    columns: dict[str, st.SearchStrategy[Any]] = {}
    for feature, field in zip(
        open_artefact(models, "house-prices").manifest.schema["features"], fields(House), strict=True
    ):
        if "allowed_values" in feature:
            columns[field.name] = st.sampled_from(feature["allowed_values"])
        elif field.type is bool:
            columns[field.name] = st.booleans()
        elif field.type is int:
            columns[field.name] = st.integers(int(feature["minimum"]) - 2, int(feature["maximum"]) + 2)
        else:
            edges = (0.0, -0.0, 5e-324, 1e300, feature["minimum"], feature["maximum"])
            columns[field.name] = st.floats(0, 2 * feature["maximum"]) | st.sampled_from(edges)
    return st.builds(House, **columns).map(
        lambda house: replace(house, year_remodeled=max(house.year_built, house.year_remodeled))
    )


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
async def test_prices_are_those_of_scikit_learn(
    pricer: HousePricer, models: Path, reference: Any, data: st.DataObject
) -> None:
    houses = data.draw(st.lists(houses_of(models), min_size=1, max_size=12))
    schema = open_artefact(models, "house-prices").manifest.schema
    expected = reference.predict(np.array([astuple(house) for house in houses], dtype=object))
    found = await pricer.predict(houses, deadline=soon())
    for estimate, log_price in zip(found, expected, strict=True):
        assert estimate.price_usd == pytest.approx(math.exp(log_price), rel=1e-9)
        assert estimate.low_usd == pytest.approx(math.exp(log_price + schema["low_log"]), rel=1e-9)
        assert estimate.high_usd == pytest.approx(math.exp(log_price + schema["high_log"]), rel=1e-9)


async def test_no_split_flips_at_its_threshold(pricer: HousePricer, reference: Any) -> None:
    """Every threshold of every tree, and the nearest numbers on either side of it."""
    boosting, names = reference["boost"], [field.name for field in fields(House)]
    area = names.index("lot_area_sqft")
    splits = {
        n["num_threshold"]
        for (t,) in boosting._predictors
        for n in t.nodes
        if not n["is_leaf"] and n["feature_idx"] == area
    }
    assert len(splits) > 50
    values = [near for s in splits for near in (np.nextafter(s, -np.inf), s, np.nextafter(s, np.inf))]
    houses = [changed(lot_area_sqft=float(value)) for value in values]
    expected = np.exp(reference.predict(np.array([astuple(house) for house in houses], dtype=object)))
    found = np.array([estimate.price_usd for estimate in await pricer.predict(houses, deadline=soon())])
    assert np.abs(found / expected - 1).max() < 1e-9


async def test_a_few_houses_need_no_lane(pricer: HousePricer, scheduler: Scheduler) -> None:
    expected = await pricer.predict([HOUSE] * (ON_THE_LOOP + 1), deadline=soon())
    scheduler.close()
    assert await pricer.predict([HOUSE] * ON_THE_LOOP, deadline=soon()) == expected[:ON_THE_LOOP]
    counted = {name: dict(work.batches) for name, work in scheduler.counters.items() if work.batches}
    assert counted == {"house-prices": {1: 1}, "house-prices on the loop": {1: 1}}
    assert scheduler.counters["house-prices on the loop"].compute_seconds > 0
    with pytest.raises(ServerStopping):
        await pricer.predict([HOUSE] * (ON_THE_LOOP + 1), deadline=soon())
