"""The models of text analysis that are no classifiers."""

from collections.abc import Callable

from server.domain.analysis import LanguageIdentifier, TextParser
from server.domain.models import ModelTask
from server.inference.scheduler import Scheduler
from server.models.artefact import Artefact
from server.models.spec import ModelSettings, ModelSpec

PARSER, LANGUAGES = "en_core_web_sm", "lid.176"


def parser(settings: ModelSettings, scheduler: Scheduler, cache_bytes: int) -> ModelSpec[TextParser]:
    """spaCy, in a process of its own."""

    def prepare() -> Callable[[Artefact], TextParser]:
        from server.tasks.analysis.spacy_parser import SpacyParser

        return lambda artefact: SpacyParser(artefact, scheduler, cache_bytes=cache_bytes)

    return ModelSpec(PARSER, ModelTask.LINGUISTICS, prepare, settings, out_of_process=True)


def languages(settings: ModelSettings, scheduler: Scheduler) -> ModelSpec[LanguageIdentifier]:
    """FastText's language identification."""

    def prepare() -> Callable[[Artefact], LanguageIdentifier]:
        from server.tasks.analysis.language import FastTextIdentifier

        return lambda artefact: FastTextIdentifier(artefact, scheduler)

    return ModelSpec(LANGUAGES, ModelTask.LANGUAGE_ID, prepare, settings)
