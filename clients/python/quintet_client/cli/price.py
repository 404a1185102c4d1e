"""`quintet price`"""

import argparse
import csv
import io
import json
from collections.abc import Mapping

from google.protobuf.descriptor import FieldDescriptor
from quintet.v1 import pricing_pb2

from quintet_client.cli.failures import OK, UsageError, named
from quintet_client.cli.options import AddCommand, batches, decode, read_bytes
from quintet_client.cli.terminal import Cell, Terminal, as_dict
from quintet_client.client import QuintetClient
from quintet_client.contract import rules
from quintet_client.inputs import House

BATCH = rules(pricing_pb2.PredictPriceRequest, "houses").repeated.max_items
FIELDS = pricing_pb2.House.DESCRIPTOR.fields
EXAMPLE: House = {
    "above_ground_area_sqft": 1450,
    "lot_area_sqft": 9600,
    "overall_quality": 6,
    "overall_condition": 5,
    "year_built": 1974,
    "year_remodeled": 1996,
    "basement_area_sqft": 1000,
    "garage_cars": 2,
    "full_baths": 2,
    "half_baths": 0,
    "bedrooms": 3,
    "total_rooms": 6,
    "fireplaces": 1,
    "neighborhood": "NAmes",
    "building_type": "1Fam",
    "house_style": "1Story",
    "central_air": True,
    "kitchen_quality": "TA",
}


def register(add: AddCommand) -> None:
    parser = add(
        "price",
        run,
        "[--file FILE]",
        "estimate the prices of houses",
        """  quintet price --example > house.json
  quintet price --file house.json
  quintet price --file house.json --overall-quality 9     the same house, better built
  quintet price --file houses.csv                         a header with the names of the features""",
    )
    parser.add_argument("--file", metavar="FILE", help='houses as JSON (one, or a list) or CSV; "-": standard input')
    parser.add_argument("--example", action="store_true", help="print a house as JSON to start from")
    group = parser.add_argument_group(
        "features",
        "Without --file, all 18 are required; with it, they change every house.\n"
        "Areas are in square feet. 'quintet models house-prices' lists the categories.",
    )
    for field in FIELDS:
        name = "--" + field.name.replace("_", "-")
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            group.add_argument(name, action=argparse.BooleanOptionalAction, default=None, help="has it or not")
        else:
            group.add_argument(name, metavar="X", help=_help(field))


def run(args: argparse.Namespace, client: QuintetClient, out: Terminal) -> int:
    """Price the houses of the file, of the options or of both."""
    if args.example:
        out.write(json.dumps(EXAMPLE, indent=2) + "\n")
        return OK
    changes = {field.name: value for field in FIELDS if (value := getattr(args, field.name)) is not None}
    if not args.file and not changes:
        raise UsageError("no house: give --file or all 18 features; 'quintet price --example' prints a house")
    houses = [{**house, **changes} for house in (_read(args.file) if args.file else [{}])]
    estimates: list[pricing_pb2.PriceEstimate] = []
    warnings: dict[int, list[tuple[str, pricing_pb2.RangeWarning]]] = {}  # feature and warning, by the house's index
    for batch in batches(enumerate(houses, 1), BATCH):
        numbers, some = zip(*batch, strict=True)
        with named("houses", [f"house {number}" if len(houses) > 1 else "house" for number in numbers]):
            response = client.predict_price(some)
        for warning in response.warnings:
            index, feature = _place(warning.field)
            warnings.setdefault(len(estimates) + index, []).append((feature, warning))
        estimates += response.estimates
    if out.as_json:
        for index, estimate in enumerate(estimates):
            outside = [{**as_dict(warning), "field": feature} for feature, warning in warnings.get(index, ())]
            out.json({**as_dict(estimate), "warnings": outside, "model": as_dict(response.model)})
        return OK
    header = ("HOUSE", "PRICE", "FROM", "TO", "NEIGHBORHOOD", "TYPE", "BUILT", "SQFT")
    out.table(header, map(_row, range(1, len(houses) + 1), houses, estimates), right="HOUSE PRICE FROM TO BUILT SQFT")
    for index, found in sorted(warnings.items()):
        for feature, warning in found:
            limits = f"{warning.minimum:.9g} to {warning.maximum:.9g}"
            house = f"house {index + 1}" if len(houses) > 1 else "the house"
            out.warn(f"warning: {feature} of {house} is {warning.value:.9g}; the model was trained on {limits}")
    out.note(f"FROM and TO bound the 90 % prediction interval · {response.model.name} {response.model.version}")
    return OK


def _help(field: FieldDescriptor) -> str:
    limits = rules(pricing_pb2.House, field.name)
    example = EXAMPLE[field.name]  # type: ignore[literal-required]  # a test checks that the names are the same
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return f"a category, such as {example}"
    number = limits.double if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE else limits.uint32
    return f"{number.gte:.9g} to {number.lte:.9g}, such as {example}"


def _place(field: str) -> tuple[int, str]:
    """The index and the feature of "houses[7].bedrooms"."""
    house, _, feature = field.partition("].")
    return int(house.removeprefix("houses[")), feature


def _row(number: int, house: Mapping[str, object], estimate: pricing_pb2.PriceEstimate) -> list[Cell]:
    prices = [f"${value:,.0f}" for value in (estimate.price_usd, estimate.low_usd, estimate.high_usd)]
    shown = ("neighborhood", "building_type", "year_built", "above_ground_area_sqft")
    return [str(number), (prices[0], "bold"), *prices[1:], *(str(house[name]) for name in shown)]


def _read(path: str) -> list[Mapping[str, object]]:
    name = "standard input" if path == "-" else path
    text = decode(read_bytes(path), name)
    houses = _from_json(text, name) if text.lstrip()[:1] in {"[", "{"} else _from_csv(text, name)
    if not houses:
        raise UsageError(f"{name}: no houses; 'quintet price --example' prints one")
    return houses


def _from_json(text: str, name: str) -> list[Mapping[str, object]]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{name}: not JSON, line {error.lineno}, column {error.colno}: {error.msg}") from error
    except ValueError as error:  # Python reads integers of up to 4,300 digits
        raise UsageError(f"{name}: has a number with too many digits") from error
    houses = value if isinstance(value, list) else [value]
    if any(not isinstance(house, dict) for house in houses):
        raise UsageError(f"{name}: every house must be a JSON object")
    return houses


def _from_csv(text: str, name: str) -> list[Mapping[str, object]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise UsageError(f"{name}: not CSV after line {reader.line_num}: {error}") from error
    for number, row in enumerate(rows, 1):
        if None in row:
            raise UsageError(f"{name}: house {number} has more values than the header has names")
    # Empty cells are missing values; the client checks the others.
    return [
        {key: _truth(value) if key == "central_air" else value for key, value in row.items() if value} for row in rows
    ]


def _truth(value: str) -> object:
    words = {"true": True, "yes": True, "y": True, "1": True, "false": False, "no": False, "n": False, "0": False}
    return words.get(value.strip().lower(), value)
