"""What an endpoint of the OpenAI protocol answers, as far as it has arrived.

Endpoints differ in what they leave out and how they name things; `tests/tasks/chat/provider_quirks.toml` has examples
of each. Unknown does not mean success: an answer is complete only if its end has a name that is known.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from server.domain.chat import FinishReason
from server.domain.errors import QuintetError, UpstreamBrokeOff
from server.tasks.chat.event_stream import DONE
from server.tasks.chat.provider_errors import reported
from server.tasks.chat.reported_usage import read_usage
from server.tasks.chat.text_repair import TextRepair, repaired

_MAX_NAME = 128
_STOP, _LENGTH, _FILTER = FinishReason.STOP, FinishReason.LENGTH, FinishReason.CONTENT_FILTER
# As _plain() makes them. Tool calls are not among them: no request offers a tool, so an answer that ends by calling one
# is not complete.
_FINISH_REASONS = {
    **dict.fromkeys(
        (
            *("stop", "stopped", "eos", "eostoken", "eosfound", "stopsequence", "stoptoken", "stopstringfound"),
            *("endturn", "end", "complete", "completed", "finish", "finished", "done", "eot", "word"),
        ),
        _STOP,
    ),
    **dict.fromkeys(
        (
            *("length", "maxlength", "modellength", "contextlength", "contextlengthreached", "tokenlimit", "limit"),
            *("maxtokens", "maxcompletiontokens", "maxoutputtokens", "maxnewtokens", "maxpredictedtokensreached"),
            *("modelcontextwindowexceeded", "contextwindowexceeded", "tokenlimitreached", "truncated"),
        ),
        _LENGTH,
    ),
    **dict.fromkeys(
        (
            *("contentfilter", "contentfiltered", "filtered", "safety", "imagesafety", "recitation", "blocklist"),
            *("prohibitedcontent", "spii", "refusal", "sensitive", "moderation", "errortoxic"),
            *("guardrail", "guardrails", "guardrailintervened", "contentpolicy", "contentpolicyviolation", "blocked"),
        ),
        _FILTER,
    ),
}
_NO_REASON = ("", "null", "None")
_ERROR_TEXTS = ("message", "msg", "detail", "error_message", "error_msg")  # of objects that are no chunks


class Answer:
    """What is known of an answer so far. `usage` is tokens of prompt and answer, and cached ones of the prompt.

    `finish_reason` is the endpoint's own word. `failure` is an error that the endpoint reported after the text so far.
    """

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.usage: tuple[int, int, int] | None = None
        self.model = ""
        self.texts: list[str] = []
        self.failure: QuintetError | None = None
        self._is_done = False
        self._has_choice = False
        self._is_refusal = False
        self._has_tool_calls = False
        self._has_delta = False
        self._repair = TextRepair()

    @property
    def has_ended(self) -> bool:
        """Whether the endpoint said why the answer ended: only usage may follow."""
        return self.finish_reason is not None or self._is_done

    def add(self, chunks: Iterable[object]) -> str:
        """Note the values of a stream and return their text. Nothing is read after a failure."""
        parts: list[str] = []
        for chunk in chunks:
            if self.failure is None:
                parts.extend(self._parts_of(chunk))
        return self._noted(self._repair.add("".join(parts)))

    def end(self) -> str:
        """The rest of the text, once the stream has ended."""
        return self._noted(self._repair.end())

    def finished(self) -> FinishReason:
        """Why the answer ended. Raises the endpoint's failure, and UpstreamBrokeOff if the answer is not complete."""
        if self.failure and self.texts:
            raise UpstreamBrokeOff("the language model's endpoint failed during the answer")
        if self.failure:
            raise self.failure
        if self.finish_reason is None:
            if self._is_done and (self.texts or (self.usage and self._has_choice)):
                return _FILTER if self._is_refusal else _STOP
            raise UpstreamBrokeOff("the language model's endpoint broke off in the middle of an answer")
        found = _FINISH_REASONS.get(_plain(self.finish_reason.partition(":")[0]))  # Gemini adds details after a colon
        if found is None or (self._has_tool_calls and not self.texts):
            raise UpstreamBrokeOff("the language model's endpoint ended the answer for a reason that means no success")
        return _FILTER if self._is_refusal and found is _STOP else found

    def _noted(self, text: str) -> str:
        if text:
            self.texts.append(text)
        return text

    def _parts_of(self, chunk: object) -> Iterable[str]:
        if isinstance(chunk, dict):
            return self._read(chunk)
        if isinstance(chunk, list):  # Gemini's endpoint wraps errors in one
            return [part for each in chunk if isinstance(each, dict) for part in self._read(each)]
        self._is_done = self._is_done or chunk == DONE
        return ()

    def _read(self, chunk: Mapping[str, Any]) -> Iterable[str]:
        if _is_error(chunk):
            self.failure = reported(chunk)
            return ()
        if isinstance(model := chunk.get("model"), str) and model:
            self.model = _name(model)
        choices = chunk.get("choices")
        choice = next((each for each in choices if isinstance(each, dict)), None) if isinstance(choices, list) else None
        for holder in (chunk, choice, chunk.get("x_groq")):
            if isinstance(holder, dict) and isinstance(usage := holder.get("usage"), dict):
                self.usage = max(filter(None, (self.usage, read_usage(usage))), key=_total, default=None)
        return () if choice is None else self._read_choice(choice)

    def _read_choice(self, choice: Mapping[str, Any]) -> Iterable[str]:
        self._has_choice = True
        if error := choice.get("error"):
            self.failure = reported({"error": error})
            return ()
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason not in _NO_REASON:
            self.finish_reason = _name(reason)
        elif reason and not isinstance(reason, str):
            self.finish_reason = "unknown"
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self._has_delta = True
        else:  # a whole message at the end repeats what deltas said
            delta = None if self._has_delta else choice.get("message")
        if isinstance(delta, dict):
            if error := delta.get("error"):
                self.failure = reported({"error": error})
                return ()
            if delta.get("tool_calls") or delta.get("function_call"):
                self._has_tool_calls = True
            if refusal := _texts(delta.get("refusal")):
                self._is_refusal = True
                return [*_texts(delta.get("content")), *refusal]
            return _texts(delta.get("content"))
        return _texts(choice.get("text"))


def _is_error(chunk: Mapping[str, Any]) -> bool:
    if chunk.get("error") or chunk.get("object") == "error" or chunk.get("type") == "error":
        return True
    if "choices" in chunk:
        return False
    return bool(chunk.get("errors")) or any(isinstance(chunk.get(name), str) for name in _ERROR_TEXTS)


def _texts(content: object) -> list[str]:
    """The text of a content: itself, or its parts of type text. Thinking is not a part of the answer."""
    if isinstance(content, str):
        return [content]
    if isinstance(content, dict):
        kind, text = content.get("type", "text"), content.get("text")
        return _texts(text) if kind in ("text", "output_text") and isinstance(text, str) else []
    if isinstance(content, list):
        return [text for part in content if not isinstance(part, list) for text in _texts(part)]
    return []


def _plain(reason: str) -> str:
    """Providers differ in case, and in hyphens and underscores."""
    return "".join(character for character in reason.lower() if character.isalnum())


def _name(text: str) -> str:
    return repaired(text[:_MAX_NAME])


def _total(usage: tuple[int, int, int]) -> int:
    """Of two counts the larger one is right: counts grow with an answer, and some endpoints end with zeros."""
    return usage[0] + usage[1]
