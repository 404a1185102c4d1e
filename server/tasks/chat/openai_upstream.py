"""Chat with any endpoint that speaks the OpenAI protocol: a provider's, a local server's, or the embedded model's."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import openai

from server.domain.chat import (
    ChatDone,
    ChatOptions,
    ChatStarted,
    FinishReason,
    Message,
    Prices,
    TextDelta,
)
from server.domain.concurrency_limiter import ConcurrencyLimiter, remaining
from server.domain.context import charge, trace_upstream
from server.domain.errors import PromptTooLong, UpstreamFailed
from server.domain.models import ModelDescription
from server.domain.money import Cost
from server.domain.usage import Usage, UsageSource
from server.tasks.chat.read_ahead import gathered
from server.tasks.chat.statistics import UpstreamStatistics
from server.tasks.chat.stream_reader import Answer
from server.tasks.chat.tokens import TokenCounter, estimated_tokens, prompt_tokens, text_tokens
from server.tasks.chat.upstream_errors import translated

Chunks = openai.AsyncStream[object]  # of chat.completion.chunk, as dictionaries

_QUEUE_PER_SLOT = 4
_FREE = Prices()
_FINISH_REASONS = {"length": FinishReason.LENGTH, "content_filter": FinishReason.CONTENT_FILTER}  # others: STOP


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to ask, and for which model. Key and headers appear in no representation.

    With `azure_api_version` it is one of Azure's: `base_url` is the resource's, and `model` the deployment's name.
    """

    provider: str
    base_url: str
    model: str
    api_key: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    prices: Prices = _FREE
    is_embedded: bool = False
    azure_api_version: str = ""
    connect_seconds: float = 5.0
    token_seconds: float = 60.0  # the longest wait for the next token


def turns_of(concurrency: int) -> ConcurrencyLimiter:
    """So many generations of a provider at once; four times as many wait, more are refused."""
    return ConcurrencyLimiter("the language model", concurrency, concurrency * _QUEUE_PER_SLOT)


class OpenAIProvider:
    """Implements `ChatProvider`. The models of one provider share its `turns`.

    It is `Router` that tries again and asks others. Usage that is no pair of counts is treated as if there were none.
    """

    def __init__(
        self, description: ModelDescription, endpoint: Endpoint, turns: ConcurrencyLimiter, counter: TokenCounter
    ) -> None:
        self.description = description
        self.provider = endpoint.provider
        self.generations = UpstreamStatistics()
        self._endpoint = endpoint
        self._turns = turns
        self._counter = counter
        self._client = _client(endpoint)

    def move(self, base_url: str) -> None:
        """The endpoint has another address from now on."""
        self._client.base_url = base_url

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """By our own count; exact for a model whose tokenizer and chat template are here."""
        return await prompt_tokens(self._counter, messages)

    def estimate(self, messages: Sequence[Message], options: ChatOptions) -> Cost:
        """What the answer costs at most. It does not wait: long prompts are guessed from their size."""
        prompt = estimated_tokens(self._counter, messages)
        cost = self._endpoint.prices.cost_micros(prompt, options.max_output_tokens)
        return Cost(prompt + options.max_output_tokens, cost)

    async def stream(
        self, messages: Sequence[Message], options: ChatOptions, *, deadline: float
    ) -> AsyncGenerator[ChatStarted | TextDelta | ChatDone, None]:
        """ChatStarted, deltas, one ChatDone. Closing it closes the connection, which stops the provider.

        Raises InvalidRequest for what the caller asked, PromptTooLong before anybody is asked, ServerOverloaded,
        UpstreamFailed, UpstreamTimeout and DeadlineExceeded.
        """
        context = self.description.max_input_tokens
        prompt = await prompt_tokens(self._counter, messages)
        if prompt >= context:
            raise PromptTooLong(prompt, context, exact=self._counter.exact)
        answer, waited = Answer(), 0.0
        patience = partial(self._patience, deadline)
        async with self._turns.take(deadline):
            yield ChatStarted(
                self.provider, self.description.identity, self._endpoint.prices, prompt, self._counter.text
            )
            most = min(options.max_output_tokens, context - prompt)
            asked = waiting_since = time.monotonic()
            tracing = trace_upstream(self.provider, self._endpoint.model, self._endpoint.base_url)
            try:
                with tracing as traced, translated(self.provider, prompt, context):
                    chunks = await self._open(messages, options, most, deadline, traced.headers)
                    async with aclosing(chunks), aclosing(gathered(chunks, patience)) as batches:
                        async for batch in batches:
                            text = "".join([answer.add(chunk) for chunk in batch])
                            now = time.monotonic()
                            waited += now - waiting_since
                            if text:
                                if not answer.texts:
                                    self.generations.time_to_first_token.add(now - asked)
                                    traced.first_token()
                                answer.texts.append(text)
                                yield TextDelta(text)
                            waiting_since = time.monotonic()
                    traced.answered(answer.model, answer.finish_reason, answer.usage)
            finally:
                charge(upstream=waited)
            if answer.finish_reason is None:
                raise UpstreamFailed("the language model's endpoint broke off in the middle of an answer")
            self.generations.durations.add(time.monotonic() - asked)
        yield await self._done(prompt, answer)

    async def _open(
        self,
        messages: Sequence[Message],
        options: ChatOptions,
        max_output_tokens: int,
        deadline: float,
        headers: Mapping[str, str],
    ) -> Chunks:
        """Ask, and at once again if the connection fails: a kept one may have been closed by the other side."""
        try:
            return await self._ask(messages, options, max_output_tokens, deadline, headers)
        except openai.APITimeoutError:
            raise
        except openai.APIConnectionError:
            return await self._ask(messages, options, max_output_tokens, deadline, headers)

    async def _ask(
        self,
        messages: Sequence[Message],
        options: ChatOptions,
        max_output_tokens: int,
        deadline: float,
        headers: Mapping[str, str],
    ) -> Chunks:
        body = {
            "model": self._endpoint.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "max_completion_tokens": max_output_tokens,
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
        return min(self._endpoint.token_seconds, remaining(deadline))

    async def _done(self, prompt: int, answer: Answer) -> ChatDone:
        if answer.usage:
            (prompt, completion, cached), source = answer.usage, UsageSource.PROVIDER
        else:
            completion = await text_tokens(self._counter, "".join(answer.texts))
            cached, source = 0, UsageSource.ESTIMATED
        self.generations.input_tokens.add(prompt)
        self.generations.output_tokens.add(completion)
        prices = self._endpoint.prices
        cost = prices.cost_micros(prompt, completion, cached)
        identity = self.description.identity
        if not identity.digest:  # a provider's model: it knows its version best
            identity = replace(identity, version=answer.model or identity.version)
        finish_reason = _FINISH_REASONS.get(answer.finish_reason or "", FinishReason.STOP)
        return ChatDone(finish_reason, Usage(prompt, completion, source, cost, prices.currency, cached), identity)


def _client(endpoint: Endpoint) -> openai.AsyncOpenAI:
    # llama.cpp closes the connection after a stream although it promised to keep it: ask for what it does.
    closing = {"Connection": "close"} if endpoint.is_embedded else {}
    common: dict[str, Any] = {
        "api_key": endpoint.api_key,
        "default_headers": {**endpoint.headers, **closing},
        "max_retries": 0,  # the SDK would sleep through a provider's Retry-After
        "http_client": openai.DefaultAsyncHttpxClient(
            timeout=openai.Timeout(None, connect=endpoint.connect_seconds),
            trust_env=not endpoint.is_embedded,  # a proxy cannot reach this machine's loopback
        ),
    }
    if endpoint.azure_api_version:
        return openai.AsyncAzureOpenAI(
            azure_endpoint=endpoint.base_url,
            azure_deployment=endpoint.model,
            api_version=endpoint.azure_api_version,
            **common,
        )
    return openai.AsyncOpenAI(base_url=endpoint.base_url, **common)
