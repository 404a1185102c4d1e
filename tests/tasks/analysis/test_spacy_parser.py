"""spaCy's English pipeline: offsets, sentences, syntax, and a vocabulary that does not grow."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.domain.analysis import ParsedText, TextSpan
from server.domain.errors import DeadlineExceeded, ModelLoading, ModelUnavailable, ServerStopping
from server.domain.models import ModelTask
from server.domain.priority import PARSING
from server.inference.scheduler import Scheduler
from server.models.artefact import open_artefact
from server.tasks.analysis import spacy_child
from server.tasks.analysis.bounded_tokenizer import MAX_RUN, cut_runs
from server.tasks.analysis.spacy_parser import SpacyParser
from tests.small_artefacts import soon
from tests.waiting import is_alive, until

TEXT = (
    "Tim Cook opened the new Apple Store in London on Monday.\n\n   It wasn't cheap: the British glass panels\tcost "
    "$5 million. Many visitors admired the glass panels, and they took photos of them! "
)


@pytest.fixture(scope="module")
async def parser(models: Path) -> AsyncIterator[SpacyParser]:
    lane = Scheduler(1, queue_limit=64)
    made = await asyncio.to_thread(SpacyParser, open_artefact(models, "en_core_web_sm"), lane)
    yield made
    made.close()
    lane.close()


@pytest.fixture(scope="module")
async def parsed(parser: SpacyParser) -> ParsedText:
    return await parser.parse(TEXT, deadline=soon())


def spans(parsed: ParsedText) -> list[TextSpan]:
    return [
        *(TextSpan(*entity[:3]) for entity in parsed.entities),
        *(TextSpan(*phrase[:3]) for phrase in parsed.key_phrases),
        *parsed.sentences,
        *(TextSpan(*token[:3]) for token in parsed.tokens),
    ]


async def test_entities_have_types(parsed: ParsedText) -> None:
    found = {(entity.text, entity.type) for entity in parsed.entities}
    expected = {("Tim Cook", "PERSON"), ("London", "GPE"), ("Monday", "DATE"), ("$5 million", "MONEY")}
    assert expected <= found


async def test_sentences_cover_the_text_without_the_space_between(parsed: ParsedText) -> None:
    assert len(parsed.sentences) == 3
    assert "".join("".join(s.text for s in parsed.sentences).split()) == "".join(TEXT.split())


async def test_key_phrases_lead_with_what_recurs_and_drop_articles_and_pronouns(parsed: ParsedText) -> None:
    texts = [phrase.text for phrase in parsed.key_phrases]
    counts = {phrase.text: phrase.count for phrase in parsed.key_phrases}
    assert counts["glass panels"] == 2
    assert "visitors" in texts, "the determiner of 'Many visitors' stayed"
    assert not {"It", "they", "them"} & set(texts)
    assert not any(text.split()[0].lower() in {"the", "many", "a"} for text in texts)


async def test_tokens_form_trees_without_white_space(parsed: ParsedText) -> None:
    tokens = parsed.tokens
    assert [token.text for token in tokens[:4]] == ["Tim", "Cook", "opened", "the"]
    assert "".join(token.text for token in tokens) == "".join(TEXT.split())
    opened = tokens[2]
    assert (opened.lemma, opened.pos, opened.tag, opened.dependency, opened.head) == ("open", "VERB", "VBD", "ROOT", 2)
    assert tokens[tokens[0].head].text == "Cook"
    roots = [index for index, token in enumerate(tokens) if token.head == index]
    assert len(roots) == len(parsed.sentences)


pieces = st.sampled_from(
    [
        "Ann",
        "saw",
        "the",
        "big",
        "dogs",
        "in",
        "New",
        "York",
        ".",
        "!",
        "\n\n",
        "   ",
        "\t",
        "\u00a0",
        "naïve",
        "😀",
        "日本",
        "e\u0301",
    ]
)


@given(text=st.lists(pieces, min_size=1, max_size=40).map(" ".join) | st.text(min_size=1, max_size=80))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
async def test_offsets_are_code_points_of_the_text(parser: SpacyParser, text: str) -> None:
    parsed = await parser.parse(text, deadline=soon())
    for span in spans(parsed):
        assert text[span.start : span.end] == span.text
        assert span.text == span.text.strip()
    assert all(token.text for token in parsed.tokens)
    assert all(0 <= token.head < len(parsed.tokens) for token in parsed.tokens)
    assert [t.start for t in parsed.tokens] == sorted(t.start for t in parsed.tokens)
    for index in range(len(parsed.tokens)):
        climbed = index
        for _ in parsed.tokens:
            climbed = parsed.tokens[climbed].head
        assert parsed.tokens[climbed].head == climbed, "the heads run in a circle"


@pytest.mark.parametrize("text", [" ", "\n", "\u200b", "x", "?" * 300])
async def test_odd_texts_are_parsed(parser: SpacyParser, text: str) -> None:
    parsed = await parser.parse(text, deadline=soon())
    assert all(sentence.text.strip() for sentence in parsed.sentences)


long_runs = st.tuples(st.text(min_size=1, max_size=4), st.integers(1, 900))


@given(parts=st.lists(long_runs, min_size=1, max_size=5))
def test_no_run_is_longer_than_the_tokenizer_can_bear(parts: list[tuple[str, int]]) -> None:
    text = " ".join(part * times for part, times in parts)
    cut = cut_runs(text)
    assert "".join(cut) == text
    assert all(cut)
    assert max(len(run) for piece in cut for run in piece.split() or [""]) <= MAX_RUN
    if max(map(len, text.split() or [""])) <= MAX_RUN:
        assert cut == [text]


@pytest.mark.parametrize("run", ["$", "'s", "(", "👍", "a.", "...", "x", "日本", "$9", "-"])
async def test_long_runs_keep_their_place(parser: SpacyParser, run: str) -> None:
    text = f"Ann saw {run * 250}\n {run * 250}, in London. She left."
    parsed = await parser.parse(text, deadline=soon())
    assert all(text[span.start : span.end] == span.text for span in spans(parsed))
    assert "".join(token.text for token in parsed.tokens) == "".join(text.split())
    assert [token.text for token in parsed.tokens][-3:] == ["She", "left", "."]


def test_the_vocabulary_does_not_grow(models: Path) -> None:
    """In the parser itself, whose process keeps it to itself."""
    code = f"""
from server.tasks.analysis.spacy_process import Parser
parser = Parser({str(open_artefact(models, "en_core_web_sm").part("pipeline"))!r})
def size():
    return sum(1 for _ in parser.nlp.vocab), len(parser.nlp.vocab.strings)
parser.parse("Is Ada Lovelace ready to answer in London?")
before = size()
for number in range(20):
    parser.parse(f"Zorblax{{number}} visited qwyjibo{{number}}ville.")
assert size() == before, (before, size())
assert sys.modules.get("torch") is None
"""
    subprocess.run([sys.executable, "-c", f"import sys\n{code}"], check=True)


async def test_calls_side_by_side_do_not_disturb_each_other(parser: SpacyParser, parsed: ParsedText) -> None:
    found = await asyncio.gather(
        *(parser.parse(text, deadline=soon()) for text in [TEXT, "Berlin is large.", TEXT, "Paris is old."] * 3)
    )
    assert found[0] == found[2] == found[8] == parsed
    assert [e.text for e in found[1].entities] == ["Berlin"]


async def test_a_text_that_recurs_is_not_parsed_again(models: Path, parsed: ParsedText) -> None:
    lane = Scheduler(1, queue_limit=1)
    made = SpacyParser(open_artefact(models, "en_core_web_sm"), lane, cache_bytes=1_000_000)
    assert await made.parse(TEXT, deadline=soon()) == parsed
    made.close()
    assert await made.parse(TEXT, deadline=soon()) == parsed
    assert lane.counters["en_core_web_sm"].cache_hits == 1
    lane.close()


async def test_ctrl_c_is_not_for_the_process_and_its_priority_counts(parser: SpacyParser) -> None:
    assert os.getpgid(parser.pid) == parser.pid != os.getpgid(0)
    assert os.getsid(parser.pid) == os.getsid(0)  # priorities of sessions may not be compared
    assert os.getpriority(os.PRIO_PROCESS, parser.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + PARSING)


async def test_a_late_call_is_refused(parser: SpacyParser) -> None:
    with pytest.raises(DeadlineExceeded):
        await parser.parse(TEXT, deadline=0.0)


async def test_it_wants_one_lane_of_its_own(models: Path, parser: SpacyParser, scheduler: Scheduler) -> None:
    assert parser.description.task is ModelTask.LINGUISTICS
    with pytest.raises(ValueError, match="exactly one lane"):
        SpacyParser(open_artefact(models, "en_core_web_sm"), scheduler)


def test_the_server_does_not_import_spacy() -> None:
    code = "import sys, server.tasks.analysis.spacy_parser; print('spacy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def ticks(pid: int) -> int:
    """Of CPU time."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_crash_fails_one_call_and_the_next_is_answered(
    parser: SpacyParser, parsed: ParsedText, number: signal.Signals
) -> None:
    crashed = parser.pid
    before = ticks(crashed)
    long = asyncio.create_task(parser.parse(TEXT * 200, deadline=soon() + 1e6))
    await until(lambda: ticks(crashed) > before)
    os.kill(crashed, number)
    with pytest.raises(ModelLoading):
        await long
    assert await parser.parse(TEXT, deadline=soon()) == parsed
    assert parser.pid != crashed
    assert not is_alive(crashed)


async def test_a_process_that_always_ends_is_lost(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spacy_child, "_FIRST_DELAY", 0.01)
    monkeypatch.setattr(spacy_child, "_WATCH_SECONDS", 0.02)
    lane = Scheduler(1, queue_limit=1)
    made = SpacyParser(open_artefact(models, "en_core_web_sm"), lane)
    assert not made.is_lost
    monkeypatch.setattr(spacy_child, "_MODULE", "nothing_of_this_name")
    os.kill(made.pid, signal.SIGKILL)
    await until(lambda: made.is_lost)
    made.close()
    lane.close()


async def test_a_process_that_ends_between_calls_fails_none(parser: SpacyParser, parsed: ParsedText) -> None:
    ended = parser.pid
    os.kill(ended, signal.SIGKILL)
    await until(lambda: parser.pid != ended)
    assert await parser.parse(TEXT, deadline=soon()) == parsed


@pytest.mark.parametrize("text", [TEXT, TEXT * 4000], ids=["while it computes", "while it is sent"])
async def test_a_process_that_is_stopped_is_replaced(
    parser: SpacyParser, parsed: ParsedText, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spacy_child, "_IDLE_SECONDS", 0.7)
    stopped = parser.pid
    os.kill(stopped, signal.SIGSTOP)
    with pytest.raises(ModelLoading):
        await parser.parse(text, deadline=soon() + 1e6)
    assert await parser.parse(TEXT, deadline=soon()) == parsed
    assert not is_alive(stopped)


# Answers the first text rightly. The first such process does something else with the second one.
ODD = """
import os, sys, time
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
is_first = not os.path.exists(os.environ["ODD_FLAG"])
open(os.environ["ODD_FLAG"], "w").close()
for number in range(10):
    text = connection.recv_bytes()
    if is_first and number:
        kind = os.environ["ODD_KIND"]
        if kind == "half-open":
            connection.close()
        elif kind != "silent":
            connection.send_bytes(kind.encode())
        time.sleep(60)
    connection.send_bytes(b'{"entities": [], "key_phrases": [], "sentences": [], "tokens": []}')
"""


@pytest.mark.parametrize("kind", ["nothing", "[]", '{"tokens": [[1]]}', "half-open", "silent"])
async def test_a_process_with_wrong_answers_is_replaced(
    models: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_child.py").write_text(ODD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("ODD_FLAG", str(tmp_path / "flag"))
    monkeypatch.setenv("ODD_KIND", kind)
    monkeypatch.setattr(spacy_child, "_MODULE", "odd_child")
    monkeypatch.setattr(spacy_child, "_IDLE_SECONDS", 0.7)
    lane = Scheduler(1, queue_limit=4)
    made = SpacyParser(open_artefact(models, "en_core_web_sm"), lane)
    first = made.pid
    try:
        with pytest.raises(ModelLoading):
            await made.parse(TEXT, deadline=soon())
        assert await made.parse(TEXT, deadline=soon()) == ParsedText((), (), (), ())
    finally:
        made.close()
        lane.close()
    assert not is_alive(first)


async def test_a_call_that_is_cancelled_does_not_leave_its_answer_to_the_next(
    parser: SpacyParser, parsed: ParsedText
) -> None:
    long = asyncio.create_task(parser.parse(TEXT * 20, deadline=soon() + 1e6))
    await asyncio.sleep(0.01)
    long.cancel()
    assert await parser.parse(TEXT, deadline=soon()) == parsed
    with pytest.raises(asyncio.CancelledError):
        await long


async def test_a_pipeline_that_cannot_be_read_is_refused(models: Path, tmp_path: Path) -> None:
    artefact = open_artefact(models, "en_core_web_sm")
    lane = Scheduler(1, queue_limit=1)
    with pytest.raises(ModelUnavailable, match="spaCy cannot be run"):
        SpacyParser(replace(artefact, path=tmp_path), lane)
    lane.close()


async def test_closing_ends_the_process_and_what_it_does(models: Path) -> None:
    lane = Scheduler(1, queue_limit=1)
    made = SpacyParser(open_artefact(models, "en_core_web_sm"), lane)
    assert is_alive(made.pid)
    long = asyncio.create_task(made.parse(TEXT * 500, deadline=soon()))
    await until(lambda: sum(lane.counters["en_core_web_sm"].batches.values()))
    made.close()
    assert not is_alive(made.pid)
    with pytest.raises(ServerStopping):
        await long
    lane.close()


def test_the_process_ends_with_the_server(models: Path) -> None:
    code = f"""
import os, pathlib
from server.tasks.analysis.spacy_parser import SpacyParser
from server.models.artefact import open_artefact
from server.inference.scheduler import Scheduler
made = SpacyParser(open_artefact(pathlib.Path({str(models)!r}), "en_core_web_sm"), Scheduler(1, 1))
print(made.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(found.stdout)
    for _ in range(500):
        if not is_alive(pid):
            return
        time.sleep(0.01)
    pytest.fail("it lives on")
