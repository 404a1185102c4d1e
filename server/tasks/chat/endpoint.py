"""The endpoint of one model: sends requests in the form that the endpoint takes."""

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import openai

from server.domain.chat import ChatOptions, Message
from server.domain.context import current_or_none
from server.domain.errors import UpstreamRejected
from server.tasks.chat.api_keys import Key
from server.tasks.chat.dialect import Dialect
from server.tasks.chat.upstream_errors import report_of

Response = openai.AsyncStream[object]  # only its bytes are used
_MOST_LESSONS = 6  # requests that are refused because of a field, before one that is taken
# Of the patience: then a call that was too short to connect is known to have sent nothing.
_CONNECT_SHARE = 0.9
# Some endpoints close the connection after a refusal without saying so. By then that is known, so another one is used.
_LESSON_SECONDS = 0.02
_DIALECT = Dialect()
_SALT = secrets.token_hex(16)


@dataclass(eq=False, repr=False)
class Endpoint:
    """Not to be shared by models: they differ in what they take, and Azure has an address for each.

    `idempotency_header` names the header by which the endpoint recognises a repeated request, if it honours one.
    """

    client: openai.AsyncOpenAI
    model: str  # its name at the endpoint
    _: KW_ONLY
    key: Key | None = None  # gives the API key for the next request; None: the client's
    dialect: Dialect = _DIALECT  # as the settings have it; later also what the endpoint taught
    idempotency_header: str = ""

    async def ask(
        self,
        messages: Sequence[Message],
        options: ChatOptions,
        limit: int,
        *,
        headers: Mapping[str, str],
        patience: Callable[[], float],
    ) -> Response:
        """Send a request for at most `limit` tokens; again without a field, or under its other name, if the endpoint
        refuses that field. `patience` is how long to wait for each answer, in seconds.

        Raises OptionRefused, UpstreamRejected, TimeoutError and the SDK's exceptions.
        """
        dialect = self.dialect
        if self.key:
            self.client.api_key = self.key()
        if self.idempotency_header:
            headers = {**headers, self.idempotency_header: _key_of_call()}
        for _ in range(_MOST_LESSONS):
            body = dialect.body(self.model, messages, options, limit)
            longest = patience()
            try:
                async with asyncio.timeout(longest):
                    response = await self._post(body, headers, _CONNECT_SHARE * longest)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                taught = dialect.taught_by(report_of(error), body, options)
                if taught is None:
                    raise
                dialect = taught
                await asyncio.sleep(_LESSON_SECONDS)
            else:
                self.dialect = dialect if dialect.is_lasting else self.dialect
                return response
        raise UpstreamRejected("the language model's endpoint rejects every form of the request")

    async def _post(self, body: Mapping[str, Any], headers: Mapping[str, str], connect: float) -> Response:
        configured = self.client.timeout
        if isinstance(configured, openai.Timeout) and configured.connect is not None:
            connect = min(connect, configured.connect)
        # The SDK's method for this endpoint would make a model of each chunk: half of the time of a stream.
        return await self.client.post(
            "/chat/completions",
            cast_to=object,
            body=body,
            options={"headers": headers, "timeout": openai.Timeout(None, connect=connect)},
            stream=True,
            stream_cls=Response,
        )


def _key_of_call() -> str:
    """The same for all requests of a call, and different for every call."""
    call = current_or_none()
    if call is None:
        return secrets.token_hex(16)
    return hashlib.sha256(f"{_SALT} {call.request_id} {call.started}".encode()).hexdigest()[:32]
