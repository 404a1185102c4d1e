"""Chat with any endpoint that speaks the OpenAI protocol: a provider's, a local server's, or the embedded model's."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import openai

from server import calls
from server.engines.chat_errors import translated
from server.engines.interfaces import (
    ChatAnswer,
    ChatDone,
    ChatOptions,
    Estimate,
    FinishReason,
    Message,
    ModelDescription,
    Prices,
    TextDelta,
    Usage,
    UsageSource,
)
from server.errors import UpstreamFailed
from server.runtime.gathered import gathered
from server.runtime.generations import Generations
from server.runtime.turns import Turns, remaining

Chunks = openai.AsyncStream[object]  # of chat.completion.chunk, as dictionaries

_CONNECT_SECONDS = 5.0
_QUEUE_PER_SLOT = 4
_FREE = Prices()
_FINISH_REASONS = {"length": FinishReason.LENGTH, "content_filter": FinishReason.CONTENT_FILTER}  # others: STOP


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to ask, and for which model. Key and headers appear in no representation."""

    base_url: str
    model: str
    api_key: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    prices: Prices = _FREE
    is_embedded: bool = False


class OpenAIChatModel:
    """Implements `ChatModel`. `slots` generations run at once, four times as many wait, more are refused.

    `token_seconds` is the longest wait for the next token. Whole answers are collected streams, so that they can be
    cancelled and timed out at every token, too.
    """

    def __init__(self, description: ModelDescription, endpoint: Endpoint, *, slots: int, token_seconds: float) -> None:
        self.description = description
        self._endpoint = endpoint
        self._turns = Turns("the language model", slots, slots * _QUEUE_PER_SLOT)
        self._token_seconds = token_seconds
        self.generations = Generations()
        # llama.cpp closes the connection after a stream although it promised to keep it: ask for what it does.
        closing = {"Connection": "close"} if endpoint.is_embedded else {}
        self._client = openai.AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=endpoint.api_key,
            default_headers={**endpoint.headers, **closing},
            max_retries=0,  # the SDK would sleep through a provider's Retry-After
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=openai.Timeout(None, connect=_CONNECT_SECONDS),
                trust_env=not endpoint.is_embedded,  # a proxy cannot reach this machine's loopback
            ),
        )

    def move(self, base_url: str) -> None:
        """The endpoint has another address from now on."""
        self._client.base_url = base_url

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def estimate(self, messages: Sequence[Message], options: ChatOptions) -> Estimate:
        """What the answer costs at most."""
        prompt = _prompt_tokens(messages)
        cost = self._endpoint.prices.cost_micros(prompt, options.max_output_tokens)
        return Estimate(prompt + options.max_output_tokens, cost)

    async def complete(self, messages: Sequence[Message], options: ChatOptions, *, deadline: float) -> ChatAnswer:
        """The stream, collected."""
        texts: list[str] = []
        async with aclosing(self.stream(messages, options, deadline=deadline)) as events:
            async for event in events:
                if isinstance(event, ChatDone):
                    return ChatAnswer("".join(texts), event)
                texts.append(event.text)
        raise AssertionError("a stream ends with ChatDone")

    async def stream(
        self, messages: Sequence[Message], options: ChatOptions, *, deadline: float
    ) -> AsyncGenerator[TextDelta | ChatDone, None]:
        """Deltas, then one ChatDone. Closing it closes the connection, which stops the provider.

        Raises InvalidRequest for what the caller asked, ServerOverloaded, UpstreamFailed, UpstreamTimeout and
        DeadlineExceeded.
        """
        answer, waited = _Answer(), 0.0
        patience = partial(self._patience, deadline)
        async with self._turns.take(deadline):
            asked = waiting_since = time.monotonic()
            tracing = calls.generation(self.description.engine, self._endpoint.model, self._endpoint.base_url)
            try:
                with tracing as generation, translated(self.description.max_input_tokens):
                    chunks = await self._open(messages, options, deadline, generation.headers)
                    async with aclosing(chunks), aclosing(gathered(chunks, patience)) as batches:
                        async for batch in batches:
                            text = "".join([answer.add(chunk) for chunk in batch])
                            now = time.monotonic()
                            waited += now - waiting_since
                            if text:
                                if answer.is_new:
                                    answer.is_new = False
                                    self.generations.time_to_first_token.add(now - asked)
                                    generation.first_token()
                                yield TextDelta(text)
                            waiting_since = time.monotonic()
                    generation.answered(answer.model, answer.finish_reason, answer.usage)
            finally:
                calls.charge(upstream=waited)
            self.generations.durations.add(time.monotonic() - asked)
        yield self._done(messages, answer)

    async def _open(
        self, messages: Sequence[Message], options: ChatOptions, deadline: float, headers: Mapping[str, str]
    ) -> Chunks:
        """Ask, and once more if the connection fails: a kept one may have been closed by the other side."""
        try:
            return await self._ask(messages, options, deadline, headers)
        except openai.APITimeoutError:
            raise
        except openai.APIConnectionError:
            return await self._ask(messages, options, deadline, headers)

    async def _ask(
        self, messages: Sequence[Message], options: ChatOptions, deadline: float, headers: Mapping[str, str]
    ) -> Chunks:
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        body = {
            "model": self._endpoint.model,
            "messages": conversation,
            "max_completion_tokens": options.max_output_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "stop": list(options.stop) or None,
            "seed": options.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        # The method of this endpoint would make a model of every chunk, which takes half of the time of a stream.
        async with asyncio.timeout(self._patience(deadline)):
            return await self._client.post(
                "/chat/completions",
                cast_to=object,
                body={name: value for name, value in body.items() if value is not None},
                options={"headers": headers},
                stream=True,
                stream_cls=Chunks,
            )

    def _patience(self, deadline: float) -> float:
        return min(self._token_seconds, remaining(deadline))

    def _done(self, messages: Sequence[Message], answer: "_Answer") -> ChatDone:
        if answer.finish_reason is None:
            raise UpstreamFailed("the language model's endpoint broke off in the middle of an answer")
        if answer.usage:
            (prompt_tokens, completion_tokens), source = answer.usage, UsageSource.PROVIDER
        else:
            prompt_tokens = _prompt_tokens(messages)
            completion_tokens, source = math.ceil(answer.utf8_bytes / 4), UsageSource.ESTIMATED
        self.generations.input_tokens.add(prompt_tokens)
        self.generations.output_tokens.add(completion_tokens)
        prices = self._endpoint.prices
        cost = prices.cost_micros(prompt_tokens, completion_tokens)
        identity = self.description.identity
        if not identity.digest:  # a provider's model: it knows its version best
            identity = replace(identity, version=answer.model or identity.version)
        finish_reason = _FINISH_REASONS.get(answer.finish_reason, FinishReason.STOP)
        return ChatDone(finish_reason, Usage(prompt_tokens, completion_tokens, source, cost, prices.currency), identity)


class _Answer:
    """What is known of an answer so far."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.usage: tuple[int, int] | None = None
        self.model = ""
        self.utf8_bytes = 0
        self.is_new = True

    def add(self, chunk: Any) -> str:
        """Take note of a chunk and return its text. The last chunk may carry usage and no choice.

        Raises one of the errors of which `translated` makes UpstreamFailed if the chunk is none.
        """
        self.model = chunk.get("model") or self.model
        if (usage := chunk.get("usage")) and isinstance(usage.get("prompt_tokens"), int):
            self.usage = (usage["prompt_tokens"], usage.get("completion_tokens") or 0)
        if not (choices := chunk.get("choices")):
            return ""
        choice = choices[0]
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        text: str = choice["delta"].get("content") or ""
        self.utf8_bytes += len(text.encode())
        return text


def _prompt_tokens(messages: Sequence[Message]) -> int:
    return sum(estimated_tokens(message.content) + 4 for message in messages)  # 4: the turn's frame


def estimated_tokens(text: str) -> int:
    """A quarter of the UTF-8 bytes, rounded up: near for English, and for Chinese with three bytes a character."""
    return math.ceil(len(text.encode()) / 4)
