"""Bodies of answers: whatever arrives in whatever pieces is read the same, or refused in one way."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from server.domain.errors import QuintetError
from server.tasks.chat.event_stream import UnreadableStream, values_of
from server.tasks.chat.stream_reader import Answer

LINES = (
    *("data: {", 'data: "a": 1}', 'data: {"choices": [{"delta": {"content": "猫😀"}}]}', "data: [DONE]", "data:"),
    *(": ping", "event: error", "event: x", "id: 1", "retry: 3", "error: no", "", "{", '{"a": [1, 2]}', "[1]", "data"),
    "\ufeff",
)
BODIES = st.binary(max_size=60) | st.builds(
    lambda lines, end: end.join(lines).encode(),
    st.lists(st.sampled_from(LINES), max_size=12),
    st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
)
NAMES = ("choices", "delta", "message", "content", "text", "type", "error", "usage", "model", "finish_reason", "index")
VALUES: st.SearchStrategy[object] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["text", "a\ud83d", "\ude00", "stop", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=25,
)


def read(pieces: Sequence[bytes]) -> list[object] | str:
    """The values of a body, or why it cannot be read."""

    async def arriving() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def values() -> list[object]:
        return [value async for value in values_of(arriving())]

    try:
        return asyncio.run(values())
    except UnreadableStream as error:
        return str(error)


@settings(deadline=None)
@given(BODIES, st.data())
def test_pieces_make_no_difference(body: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    whole, found = read([body]), read(pieces)
    assert json.dumps(found) == json.dumps(whole)


@settings(deadline=None)
@given(st.lists(VALUES, max_size=6))
def test_any_values_make_text_that_can_be_sent(values: list[object]) -> None:
    answer = Answer()
    text = answer.add(values) + answer.end()
    text.encode()
    answer.model.encode()
    try:
        answer.finished()
    except QuintetError as error:
        error.message.encode()
