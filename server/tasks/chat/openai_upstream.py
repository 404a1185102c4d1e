"""An upstream: one model of an endpoint that speaks the OpenAI protocol, be it a provider's or the embedded one."""

import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial

from server.domain.chat import ChatDone, ChatOptions, ChatStarted, FinishReason, Message, Prices, TextDelta
from server.domain.concurrency_limiter import ConcurrencyLimiter, remaining
from server.domain.context import charge, trace_upstream
from server.domain.errors import (
    ModelLoading,
    PromptTooLong,
    UpstreamFailed,
    UpstreamFull,
    UpstreamQuotaExhausted,
    UpstreamRefused,
    UpstreamRejected,
    UpstreamTimeout,
)
from server.domain.models import ModelDescription
from server.domain.money import Cost
from server.domain.usage import UsageSource
from server.tasks.chat.circuit_breaker import CircuitBreaker, CircuitState
from server.tasks.chat.endpoint import Endpoint
from server.tasks.chat.event_stream import values_of
from server.tasks.chat.read_ahead import ReadAhead
from server.tasks.chat.statistics import UpstreamStatistics
from server.tasks.chat.stream_reader import Answer
from server.tasks.chat.text_repair import pieces_of
from server.tasks.chat.tokens import TokenCounter
from server.tasks.chat.upstream_errors import translated

_FREE = Prices()
_QUEUE_PER_SLOT = 4
_END_SECONDS = 1.0  # longest wait for the end of a stream from which nothing is missing


def limiter_of(concurrency: int) -> ConcurrencyLimiter:
    """So many answers of a provider at once; four times as many wait, more are refused."""
    return ConcurrencyLimiter("the language model", concurrency, concurrency * _QUEUE_PER_SLOT)


@dataclass(eq=False, repr=False)
class Upstream:
    """Asks one model. The models of one provider share `limiter` and `breaker`. `Router` retries and asks others."""

    description: ModelDescription
    endpoint: Endpoint
    limiter: ConcurrencyLimiter
    counter: TokenCounter
    breaker: CircuitBreaker
    _: KW_ONLY
    prices: Prices = _FREE
    token_seconds: float = 60.0  # longest wait for the next token
    is_ready: Callable[[], bool] = lambda: True
    prepared: Callable[[Sequence[Message]], Sequence[Message]] = lambda messages: messages  # before they are sent
    statistics: UpstreamStatistics = field(default_factory=UpstreamStatistics, init=False)

    @property
    def is_idempotent(self) -> bool:
        """Whether a request that may have been computed can be repeated."""
        return bool(self.endpoint.idempotency_header)

    @property
    def name(self) -> str:
        return self.description.identity.name

    def trouble(self) -> str:
        """Why it cannot be asked now; empty if it can."""
        if not self.is_ready():
            return f'model "{self.name}" is being restarted'
        if self.breaker.state is CircuitState.OPEN:
            return f'provider "{self.breaker.name}" is not asked for a while, because it failed repeatedly'
        return ""

    async def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Our own count; exact for a model whose tokenizer and chat template are here."""
        return await self.counter.count_prompt(self.prepared(messages))

    def estimate(self, messages: Sequence[Message], options: ChatOptions) -> Cost:
        """What the answer costs at most. It does not block: long prompts are estimated by their size."""
        return self.cost(self.counter.estimate(self.prepared(messages)), options.max_output_tokens)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> Cost:
        return Cost(prompt_tokens + completion_tokens, self.prices.cost_micros(prompt_tokens, completion_tokens))

    async def stream(
        self, messages: Sequence[Message], options: ChatOptions, *, deadline: float
    ) -> AsyncGenerator[ChatStarted | TextDelta | ChatDone, None]:
        """ChatStarted, deltas, one ChatDone. Closing it closes the connection, which stops the provider.

        Before the endpoint is asked it raises UpstreamRefused if the circuit is open, ModelLoading, PromptTooLong and
        ServerOverloaded; then InvalidRequest for the caller's fault, UpstreamFailed, UpstreamTimeout, DeadlineExceeded.
        """
        provider, context, answer = self.breaker.name, self.description.max_input_tokens, Answer()
        with self._reported(deadline) as succeeded:
            if not self.is_ready():
                raise ModelLoading(f'model "{self.name}" is being restarted', retry_after=2.0)
            messages = self.prepared(messages)
            prompt = await self.counter.count_prompt(messages)
            if prompt >= context:
                raise PromptTooLong(prompt, context, exact=self.counter.exact)
            async with self.limiter.take(deadline):
                yield ChatStarted(provider, self.description.identity, self.prices, prompt, self.counter.text)
                limit = min(options.max_output_tokens, context - prompt)
                asked = waiting_since = time.monotonic()
                patience = partial(self._patience, answer, deadline)
                tracing = trace_upstream(provider, self.endpoint.model, str(self.endpoint.client.base_url))
                with tracing as trace, translated(provider):
                    response = await self.endpoint.ask(
                        messages, options, limit, headers=trace.headers, patience=patience
                    )
                    values = values_of(response.response.aiter_bytes())
                    reading = ReadAhead(values, patience, lambda: answer.has_ended)
                    async with aclosing(response), aclosing(values), reading as batches:
                        async for batch in batches:
                            now = time.monotonic()
                            charge(upstream=now - waiting_since)
                            if text := answer.add(batch):
                                if len(answer.texts) == 1:
                                    succeeded()
                                    self.statistics.time_to_first_token.add(now - asked)
                                    trace.first_token()
                                for piece in pieces_of(text):
                                    yield TextDelta(piece)
                            if answer.failure:
                                break
                            waiting_since = time.monotonic()
                    if text := answer.end():
                        yield TextDelta(text)
                    trace.answered(answer.model, answer.finish_reason, answer.usage)
                    finish_reason = answer.finished()
                if not answer.texts:
                    succeeded()
                self.statistics.durations.add(time.monotonic() - asked)
            yield await self._done(prompt, answer, finish_reason)

    @contextmanager
    def _reported(self, deadline: float) -> Iterator[Callable[[], None]]:
        """Tells the circuit breaker how the request ends; yields the function that reports the start of an answer."""
        breaker = self.breaker
        ticket = breaker.enter()
        if ticket is None:
            raise UpstreamRefused(
                f'provider "{breaker.name}" failed repeatedly, so it is not asked for a while',
                retry_after=max(1.0, breaker.seconds_left),
            )
        try:
            yield partial(breaker.succeeded, ticket)
        except (UpstreamFull, UpstreamRejected):
            breaker.succeeded(ticket)
            raise
        except (UpstreamFailed, UpstreamTimeout, UpstreamQuotaExhausted):
            if time.monotonic() < deadline:  # otherwise the caller's deadline was too short
                breaker.failed(ticket)
            raise
        finally:
            breaker.gave_up(ticket)

    def _patience(self, answer: Answer, deadline: float) -> float:
        longest = _END_SECONDS if answer.has_ended and answer.usage else self.token_seconds
        return min(longest, remaining(deadline))

    async def _done(self, prompt: int, answer: Answer, finish_reason: FinishReason) -> ChatDone:
        if answer.usage:
            (prompt, completion, cached), source = answer.usage, UsageSource.PROVIDER
        else:
            completion = await self.counter.count_text("".join(answer.texts))
            cached, source = 0, UsageSource.ESTIMATED
        self.statistics.input_tokens.add(prompt)
        self.statistics.output_tokens.add(completion)
        usage = self.prices.usage(prompt, completion, source, cached)
        identity = self.description.identity
        if not identity.digest:  # a provider's model: the answer names its version
            identity = replace(identity, version=answer.model or identity.version)
        return ChatDone(finish_reason, usage, identity)
