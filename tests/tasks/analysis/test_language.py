"""lid.176 through the engine."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.domain.errors import DeadlineExceeded
from server.domain.models import ModelTask
from server.inference.scheduler import Scheduler
from server.models.artefact import open_artefact
from server.tasks.analysis.language import FastTextIdentifier
from tests.small_artefacts import soon


@pytest.fixture
def identifier(models: Path, scheduler: Scheduler) -> FastTextIdentifier:
    return FastTextIdentifier(open_artefact(models, "lid.176"), scheduler)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Where is the nearest railway station, please?", "en"),
        ("Où se trouve la gare la plus proche, s'il vous plaît ?", "fr"),
        ("¿Dónde está la estación de tren más cercana, por favor?", "es"),
        ("Wo ist bitte der nächste Bahnhof?", "de"),
        ("最寄りの駅はどこですか。", "ja"),
        ("Где находится ближайший вокзал?", "ru"),
        ("Nhà ga gần nhất ở đâu vậy?", "vi"),
    ],
)
async def test_languages_are_recognised(identifier: FastTextIdentifier, text: str, language: str) -> None:
    labels = await identifier.identify(text, deadline=soon())
    assert labels[0].name == language
    assert labels[0].score > 0.5
    assert len(labels) <= 3


async def test_lines_are_read_as_one_text(identifier: FastTextIdentifier) -> None:
    text = "Où se trouve\nla gare la plus\n\nproche ?"
    assert await identifier.identify(text, deadline=soon()) == await identifier.identify(
        text.replace("\n", " "), deadline=soon()
    )


@given(text=st.text(min_size=1, max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_text_gets_ranked_probabilities(identifier: FastTextIdentifier, text: str) -> None:
    labels = await identifier.identify(text, deadline=soon())
    scores = [label.score for label in labels]
    assert 1 <= len(labels) <= 3
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert all(label.name.isalpha() and 2 <= len(label.name) <= 3 for label in labels)


async def test_it_describes_itself_and_keeps_deadlines(identifier: FastTextIdentifier) -> None:
    assert (identifier.description.task, identifier.description.engine) == (ModelTask.LANGUAGE_ID, "fasttext")
    with pytest.raises(DeadlineExceeded):
        await identifier.identify("hello", deadline=0.0)
