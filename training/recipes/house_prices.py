"""House prices: 18 features of a house in Ames, Iowa, to a price with a 90 % interval.

The logarithm of the price is modelled, so that an error is a share of the price. The interval is conformal: it
contains the middle 90 % of the errors of five models on sales outside their training data, without an assumption about
the errors' distribution. Data: De Cock (2011), 2,930 sales from 2006 to 2010.

The trees are published as ONNX: a house takes microseconds instead of scikit-learn's milliseconds, and the server
unpickles nothing. model.joblib stays beside them for comparison; the server does not open it.
"""

import math
from dataclasses import fields
from typing import Any

import joblib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.metrics import mean_absolute_error, mean_absolute_percentage_error, r2_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder, TargetEncoder
from threadpoolctl import threadpool_limits

from server.domain.pricing import House
from training.datasets.dataframe import read_dataframe
from training.graphs.trees import export_trees
from training.recipe import Outcome, Workspace
from training.report import write_report

COVERAGE = 0.90
FOLDS = 5
SEED = 0
# A prediction evaluates every tree: 200 take two thirds of the time of 300 at half the rate, and lose 0.001 of R2.
BOOSTING: dict[str, Any] = {
    "max_iter": 200,
    "learning_rate": 0.07,
    "max_leaf_nodes": 15,
    "min_samples_leaf": 10,
    "l2_regularization": 1.0,
    "max_features": 0.3,
}
# The fields of House, in its order, with the columns of the data.
COLUMNS = {
    "above_ground_area_sqft": "area",
    "lot_area_sqft": "Lot.Area",
    "overall_quality": "Overall.Qual",
    "overall_condition": "Overall.Cond",
    "year_built": "Year.Built",
    "year_remodeled": "Year.Remod.Add",
    "basement_area_sqft": "Total.Bsmt.SF",
    "garage_cars": "Garage.Cars",
    "full_baths": "Full.Bath",
    "half_baths": "Half.Bath",
    "bedrooms": "Bedroom.AbvGr",
    "total_rooms": "TotRms.AbvGrd",
    "fireplaces": "Fireplaces",
    "neighborhood": "Neighborhood",
    "building_type": "Bldg.Type",
    "house_style": "House.Style",
    "central_air": "Central.Air",
    "kitchen_quality": "Kitchen.Qual",
}
QUALITIES = ["Po", "Fa", "TA", "Gd", "Ex"]  # from worst to best; used as a number
TEXT = f"""
Gradient boosted trees on the logarithm of the price, trained on {{sales:,}} sales in Ames, Iowa, 2006 to 2010. All
metrics are out of fold ({FOLDS} folds): every sale is estimated by a model that was not trained on it. Coverage is the
share of sales within their interval, which the other folds set. The interval is the same share of every price, which is
too narrow for the cheapest houses, because they vary more. Prices are those of 2006 to 2010; the model does not know
other towns and years.
"""

Table = NDArray[np.object_]
Vector = NDArray[np.float64]


def build(workspace: Workspace) -> Outcome:
    """Train on all sales; measure, and set the interval, out of fold."""
    table, log_price = read_sales(workspace)
    folds = KFold(FOLDS, shuffle=True, random_state=SEED)
    fold_of = np.empty(len(log_price), dtype=int)
    for number, (_, test) in enumerate(folds.split(table)):
        fold_of[test] = number
    with threadpool_limits(1):  # more threads are slower on so few rows
        unseen = cross_val_predict(new_model(table), table, log_price, cv=folds)
        model = new_model(table).fit(table, log_price)
    errors = log_price - unseen
    low, high = interval(errors)
    joblib.dump(model, workspace.folder / "model.joblib", compress=3)
    constant = export_trees(model["boost"], workspace.folder / "model.onnx")
    metrics = measure(log_price, unseen, fold_of)
    _plot(workspace, np.exp(log_price), np.exp(unseen), (low, high))
    write_report(workspace.folder, "house-prices", TEXT.format(sales=len(table)), metrics, "prices.png")
    schema = {
        "task": "regression",
        "features": [feature(name, table[:, column]) for column, name in enumerate(COLUMNS)],
        "codes": codes(model),
        "constant_log": constant,
        "interval": COVERAGE,
        "low_log": low,
        "high_log": high,
    }
    return Outcome(schema, metrics)


def read_sales(workspace: Workspace) -> tuple[Table, Vector]:
    """Features [sales, 18] in the order of House, and the logarithms of the prices.

    One sale lacks its basement's area and one its garage; they stay nan, which the trees handle.
    """
    if list(COLUMNS) != [field.name for field in fields(House)]:
        raise RuntimeError("COLUMNS and House differ")
    frame = read_dataframe(workspace.input("ames")["ames.pkl.compress"])
    table = np.empty((len(frame["price"]), len(COLUMNS)), dtype=object)
    for column, name in enumerate(COLUMNS.values()):
        table[:, column] = [math.nan if value is None else value for value in frame[name].tolist()]
    air = list(COLUMNS).index("central_air")
    table[:, air] = [value == "Y" for value in table[:, air]]
    return table, np.log(frame["price"].astype(np.float64))


def new_model(table: Table) -> Pipeline:
    """Categories become numbers, numbers stay; then boosting. Takes rows in the order of House.

    A category becomes the mean of its prices' logarithms, smoothed towards the mean of all. Splits on such numbers are
    evaluated faster than splits on sets of categories, and lose 0.001 of R2.
    """
    encoders = []
    for column, name in enumerate(COLUMNS):
        if name == "kitchen_quality":
            encoders.append((name, OrdinalEncoder(categories=[QUALITIES]), [column]))
        elif isinstance(table[0, column], str):
            folds = KFold(FOLDS, shuffle=True, random_state=SEED)
            encoders.append((name, TargetEncoder(target_type="continuous", cv=folds), [column]))
        else:
            encoders.append((name, "passthrough", [column]))
    boosting = HistGradientBoostingRegressor(random_state=SEED, **BOOSTING)
    return Pipeline([("encode", ColumnTransformer(encoders)), ("boost", boosting)])


def codes(model: Pipeline) -> dict[str, dict[str, float]]:
    """The number of each value of each categorical feature."""
    found: dict[str, dict[str, float]] = {}
    for name, encoder, _ in model["encode"].transformers_:
        if isinstance(encoder, (OrdinalEncoder, TargetEncoder)):
            (values,) = encoder.categories_
            numbers = encoder.encodings_[0] if isinstance(encoder, TargetEncoder) else range(len(values))
            found[name] = {str(value): float(number) for value, number in zip(values, numbers, strict=True)}
    return found


def interval(errors: Vector) -> tuple[float, float]:
    """The offsets from a logarithmic estimate to the ends of its interval."""
    tail = (1 - COVERAGE) / 2
    count = len(errors)
    ordered = np.sort(errors)
    rank = math.floor((count + 1) * tail)  # with the correction for a finite sample
    return float(ordered[rank - 1]), float(ordered[count - rank])


def measure(log_price: Vector, unseen: Vector, fold_of: NDArray[np.int_]) -> dict[str, float]:
    """Metrics in dollars, and the coverage of intervals that the other folds set."""
    price, estimate = np.exp(log_price), np.exp(unseen)
    errors = log_price - unseen
    inside = np.empty(len(errors), dtype=bool)
    for fold in range(FOLDS):
        low, high = interval(errors[fold_of != fold])
        held_out = errors[fold_of == fold]
        inside[fold_of == fold] = (low <= held_out) & (held_out <= high)
    low, high = interval(errors)
    cheap = price <= np.quantile(price, 0.2)
    return {
        "r2": float(r2_score(price, estimate)),
        "mean_absolute_error_usd": float(mean_absolute_error(price, estimate)),
        "median_absolute_error_usd": float(np.median(np.abs(price - estimate))),
        "mean_absolute_percentage_error": float(mean_absolute_percentage_error(price, estimate)),
        "interval_coverage": float(inside.mean()),
        "interval_coverage_cheapest_fifth": float(inside[cheap].mean()),
        "interval_median_width_usd": float(np.median(estimate) * (math.exp(high) - math.exp(low))),
    }


def feature(name: str, values: Table) -> dict[str, Any]:
    """A feature as the service describes it: its categories, or the range of the data."""
    if name == "kitchen_quality":
        return {"name": name, "allowed_values": QUALITIES}
    if isinstance(values[0], str):
        return {"name": name, "allowed_values": sorted(set(values))}
    numbers = values.astype(np.float64)
    return {"name": name, "minimum": float(np.nanmin(numbers)), "maximum": float(np.nanmax(numbers))}


def _plot(workspace: Workspace, price: Vector, estimate: Vector, offsets: tuple[float, float]) -> None:
    """Draw prices.png: prices against out-of-fold estimates, with the interval."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="estimate, 1000 USD", ylabel="price, 1000 USD")
    axes.scatter(estimate / 1000, price / 1000, s=4, alpha=0.4)
    line = np.array([estimate.min(), estimate.max()]) / 1000
    axes.plot(line, line, color="black", linewidth=1)
    axes.fill_between(line, line * math.exp(offsets[0]), line * math.exp(offsets[1]), alpha=0.15)
    figure.savefig(workspace.folder / "prices.png", dpi=100)
