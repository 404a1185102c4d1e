"""Language identification with fastText's lid.176."""

from functools import partial
from typing import Any

import fasttext

from server.domain.models import ModelTask
from server.domain.texts import Label
from server.inference.scheduler import Scheduler
from server.models.artefact import Artefact

_MAX_LABELS = 3
_PREFIX = "__label__"


class FastTextIdentifier:
    """A LanguageIdentifier from an artefact. Labels are ISO 639 codes of two letters, or three. Constructing it blocks.

    The module is that of fasttext-predict, because predict() of the original fails on numpy 2.
    """

    def __init__(self, artefact: Artefact, scheduler: Scheduler) -> None:
        self._model: Any = fasttext.load_model(str(artefact.part("lid.176.ftz")))
        self._scheduler = scheduler
        self.description = artefact.describe(ModelTask.LANGUAGE_ID, "fasttext")
        self._identify("Which language is this?")

    async def identify(self, text: str, *, deadline: float) -> tuple[Label, ...]:
        name = self.description.identity.name
        return await self._scheduler.run(partial(self._identify, text), deadline=deadline, name=name)

    def _identify(self, text: str) -> tuple[Label, ...]:
        codes, scores = self._model.predict(text.replace("\n", " "), k=_MAX_LABELS)  # a line feed would end the text
        return tuple(
            Label(code.removeprefix(_PREFIX), min(max(float(score), 0.0), 1.0))  # it rounds up to 1.00001
            for code, score in zip(codes, scores, strict=True)
        )
