"""Which names and options an endpoint takes, and what it teaches by refusing one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.domain.chat import ChatOptions, Message
from server.domain.errors import OptionRefused
from server.tasks.chat.provider_errors import Report

LIMIT_NAMES = ("max_completion_tokens", "max_tokens")
OPTIONS = ("temperature", "top_p", "stop", "seed", "stream_options", "stream")
_TOO_LARGE = re.compile(r"too large|too high|at most|less than|must be <|exceed|greater than|maximum")
_ORDINARY_WORDS = {"stop", "seed", "stream"}  # mean the field only in quotes, or after a word such as "parameter"
_BEFORE = r"(?:[\"'`]|(?:parameters?|arguments?|fields?|options?|names?|supplied)[\s:]+)"


@dataclass(frozen=True)
class Dialect:
    """`limit_name` is the field for the most tokens of an answer, or empty if the endpoint takes none; then only the
    server enforces the limit. `without` are options that the endpoint does not take.
    """

    limit_name: str = LIMIT_NAMES[0]
    without: frozenset[str] = frozenset()

    @property
    def is_lasting(self) -> bool:
        """False if it leaves out the limit only because its value was too large in one call."""
        return bool(self.limit_name) or self.without.issuperset(LIMIT_NAMES)

    def body(self, model: str, messages: Sequence[Message], options: ChatOptions, limit: int) -> dict[str, Any]:
        """A request's. Raises OptionRefused if the caller chose an option that the endpoint does not take."""
        for name in options.of_caller & self.without:
            raise OptionRefused(name)
        body = {
            "model": model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            self.limit_name: limit,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "stop": list(options.stop) or None,
            "seed": options.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if "stream" in self.without:
            del body["stream_options"]
        return {name: value for name, value in body.items() if value is not None and name and name not in self.without}

    def taught_by(self, report: Report, sent: Mapping[str, Any], options: ChatOptions) -> "Dialect | None":
        """What to try after the endpoint refused a request; None if the refusal names no field that can be changed.

        Raises OptionRefused if it refuses what the caller chose.
        """
        named = _named(report, [name for name in (*LIMIT_NAMES, *OPTIONS) if name in sent])
        if named in LIMIT_NAMES:
            if _TOO_LARGE.search(report.words):  # the name is right
                return replace(self, limit_name="")
            others = [name for name in LIMIT_NAMES if name not in {named, *self.without}]
            return replace(self, limit_name=others[0] if others else "", without=self.without | {named})
        if named in options.of_caller:
            raise OptionRefused(named)
        return replace(self, without=self.without | {named}) if named else None


def _named(report: Report, sent: Sequence[str]) -> str:
    """The field of a request that an error names as wrong, or empty."""
    for parameter in report.parameters:
        if parameter in sent:
            return parameter
    for name in sent:
        before = _BEFORE if name in _ORDINARY_WORDS else r"\b"
        if re.search(rf"{before}{name}\b", report.words):
            return name
    return ""
