"""Values that no field can hold: InvalidRequest with the field's path, before anything is sent."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quintet_client import QuintetClient, errors, inputs
from quintet_client.cli.price import EXAMPLE

from tests.clients.conftest import Quintet
from tests.clients.small_server import SmallServer

HALF, HUGE = "half \ud83d", 10**400
UNICODE = "must be valid Unicode; it has half of a surrogate pair"
NUMBER, WHOLE, TEXT = "must be a number", "must be a whole number, 0 or more", "must be a text"
LONG_AGO = datetime.fromisoformat("0001-01-01T00:00+14:00")
Use = Callable[[Any], Any]  # of a client, whose types these calls break


def house(**changes: Any) -> dict[str, Any]:
    return {**EXAMPLE, **changes}


def document(**changes: Any) -> dict[str, Any]:
    return {"id": "1", "text": "x", **changes}


CASES: list[tuple[str, Use, str]] = [
    ("texts[1]", lambda client: client.classify(["good", HALF]), UNICODE),
    ("texts[0]", lambda client: client.embed("\udcff"), UNICODE),
    ("model", lambda client: client.classify("good", model=HALF), UNICODE),
    ("texts[1]", lambda client: client.classify(["good", 7]), TEXT),
    ("top_k", lambda client: client.classify("good", top_k=-1), WHOLE),
    ("top_k", lambda client: client.classify("good", top_k=HUGE), WHOLE),
    ("top_k", lambda client: client.classify("good", top_k="3"), WHOLE),
    ("houses[1].lot_area_sqft", lambda client: client.predict_price([house(), house(lot_area_sqft=HUGE)]), NUMBER),
    ("houses[0].lot_area_sqft", lambda client: client.predict_price([house(lot_area_sqft=-HUGE)]), NUMBER),
    ("houses[0].bedrooms", lambda client: client.predict_price([house(bedrooms=HUGE)]), WHOLE),
    ("houses[0].neighborhood", lambda client: client.predict_price([house(neighborhood=HALF)]), UNICODE),
    ("houses[0].half \\ud83d", lambda client: client.predict_price([house(**{HALF: 1})]), "is not a field"),
    ("houses[0]", lambda client: client.predict_price([7]), "must be an object with the fields of House"),
    ("messages[0].content", lambda client: client.chat([{"role": "system", "content": HALF}]), UNICODE),
    ("messages[0].content", lambda client: client.chat(HALF), UNICODE),
    ("messages[0].content", lambda client: client.stream_chat(HALF), UNICODE),
    ("messages[0]", lambda client: client.chat([7]), "must be an object with the fields of ChatMessage"),
    ("temperature", lambda client: client.chat("x", temperature=HUGE), NUMBER),
    ("seed", lambda client: client.chat("x", seed=HUGE), "must be a whole number of 64 bits"),
    ("stop[1]", lambda client: client.chat("x", stop=["ok", HALF]), UNICODE),
    ("temprature", lambda client: client.chat("x", temprature=1), 'is not a field; did you mean "temperature"?'),
    ("question", lambda client: client.ask(HALF), UNICODE),
    ("question", lambda client: client.stream_ask(HALF), UNICODE),
    ("query", lambda client: client.retrieve(HALF), UNICODE),
    ("collection", lambda client: client.get_index(HALF), UNICODE),
    ("min_generation", lambda client: client.get_index("notes", min_generation=HUGE), WHOLE),
    ('where["kind"]', lambda client: client.retrieve("x", where={"kind": HALF}), UNICODE),
    ('where["half \\ud83d"]', lambda client: client.retrieve("x", where={HALF: "faq"}), UNICODE),
    ('where["year"]', lambda client: client.retrieve("x", where={"year": (HUGE, None)}), NUMBER),
    ("text", lambda client: client.analyze(HALF), UNICODE),
    ("documents[1].text", lambda client: client.add_documents("n", [document(), document(text=HALF)]), UNICODE),
    ("documents[0].metadata", lambda client: client.add_documents("n", [document(metadata={"a": HALF})]), UNICODE),
    ("documents[0].text", lambda client: client.import_documents("n", [document(text=HALF)]), UNICODE),
    ("document_ids[0]", lambda client: client.delete_documents("n", [HALF]), UNICODE),
    ("name", lambda client: client.get_model(HALF), UNICODE),
    ("tenant", lambda client: client.get_usage(tenant=HALF), UNICODE),
    ("filter.start_time", lambda client: client.get_usage(since=LONG_AGO), "must be a time from the year 1"),
]


@pytest.mark.parametrize(("field", "use", "description"), CASES, ids=[f"{n} {case[0]}" for n, case in enumerate(CASES)])
def test_what_a_field_cannot_hold(server: SmallServer, field: str, use: Use, description: str) -> None:
    with QuintetClient(server.address) as client, pytest.raises(errors.InvalidRequest) as raised:
        use(client)
    (violation,) = raised.value.violations
    assert violation.field == field
    assert violation.description.startswith(description)
    assert str(raised.value).encode(), "it can be printed"
    assert server.recorder.seen == []


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(field=st.sampled_from([*EXAMPLE, "unknown"]), value=values)
def test_any_value_of_a_house_is_sent_or_refused(field: str, value: object) -> None:
    try:
        assert inputs.houses([house(**{field: value})])[0].SerializeToString()
    except errors.InvalidRequest as error:
        refused = [violation.field for violation in error.violations]
        assert refused == [f"houses[0].{field}"]  # not every value is refused


def test_the_command_says_it_without_a_traceback(quintet_command: Quintet, tmp_path: Path) -> None:
    (tmp_path / "house.json").write_text(f'{{"lot_area_sqft": {"9" * 400}}}')
    (tmp_path / "digits.json").write_text(f'{{"lot_area_sqft": {"9" * 5000}}}')
    for file, line in (("house.json", "lot_area_sqft: must be a number"), ("digits.json", "too many digits")):
        done = quintet_command("price", "--file", str(tmp_path / file))
        assert done.returncode == 2
        assert line in done.stderr
        assert "Traceback" not in done.stderr
