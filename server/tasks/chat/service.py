"""quintet.v1.ChatService"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal, cast

from quintet.v1 import chat_pb2, chat_pb2_grpc, common_pb2

from server.domain.chat import ChatDone, ChatModel, ChatOptions, Message, TextDelta
from server.domain.context import current
from server.domain.errors import InvalidRequest, Violation
from server.domain.money import Cost
from server.models.handle import Handle, find
from server.rpc.access import uses_chosen
from server.rpc.convert import end_of_answer
from server.rpc.service_spec import MethodSpec, ServiceSpec
from server.tenancy.tenants import Role

Request = chat_pb2.ChatRequest | chat_pb2.StreamChatRequest
_Converted = tuple[ChatModel, Sequence[Message], ChatOptions]

_ROLES: dict[int, Literal["system", "user", "assistant"]] = {
    chat_pb2.CHAT_ROLE_SYSTEM: "system",
    chat_pb2.CHAT_ROLE_USER: "user",
    chat_pb2.CHAT_ROLE_ASSISTANT: "assistant",
}
_MAX_CODE_POINTS = 32_000
_MAX_OUTPUT_TOKENS = 512


class ChatServicer(chat_pb2_grpc.ChatServiceServicer):
    """Conversations to answers. The first of `models` serves requests that name none."""

    def __init__(self, models: Mapping[str, Handle[ChatModel]]) -> None:
        self._models = models
        self._default = next(iter(models))

    def estimate(self, request: Request) -> Cost:
        """What a request costs at most. Raises what serving it would raise."""
        model, messages, options = self._converted(request)
        return model.estimate(messages, options)

    async def Chat(self, request: chat_pb2.ChatRequest, context: Any) -> chat_pb2.ChatResponse:
        """The answer of StreamChat, collected."""
        texts: list[str] = []
        response = chat_pb2.ChatResponse()
        async with aclosing(self._stream(request)) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    texts.append(event.text)
                else:
                    message = chat_pb2.ChatMessage(role=chat_pb2.CHAT_ROLE_ASSISTANT, content="".join(texts))
                    response = chat_pb2.ChatResponse(message=message, **end_of_answer(event))
        return response

    async def StreamChat(
        self, request: chat_pb2.StreamChatRequest, context: Any
    ) -> AsyncIterator[chat_pb2.StreamChatResponse]:
        async with aclosing(self._stream(request)) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    yield chat_pb2.StreamChatResponse(delta=common_pb2.TextDelta(text=event.text))
                else:
                    yield chat_pb2.StreamChatResponse(done=chat_pb2.ChatDone(**end_of_answer(event)))

    def _stream(self, request: Request) -> AsyncGenerator[TextDelta | ChatDone, None]:
        model, messages, options = self._converted(request)
        return model.stream(messages, options, deadline=current().deadline)

    def _converted(self, request: Request) -> _Converted:
        """The model, messages and options of a request, converted once for both its estimate and its answer."""
        call = current()
        if call.converted is None:
            messages = _messages(request)
            model = find(self._models, request.model or self._default).get()
            call.converted = (model, messages, _options(request))
        return cast(_Converted, call.converted)


def spec(models: Mapping[str, Handle[ChatModel]], *, required: bool) -> ServiceSpec:
    """The service over what callers can name, the default first."""
    servicer = ChatServicer(models)
    return ServiceSpec(
        servicer,
        dict.fromkeys(
            ("Chat", "StreamChat"), MethodSpec(Role.CALL, servicer.estimate, (uses_chosen(next(iter(models))),))
        ),
        needs=(next(iter(models.values())),),
        required=required,
    )


def _messages(request: Request) -> list[Message]:
    """The conversation. Raises InvalidRequest for the limits that no single field can hold."""
    if sum(len(message.content) for message in request.messages) > _MAX_CODE_POINTS:
        raise InvalidRequest([Violation("messages", f"must have at most {_MAX_CODE_POINTS} code points in all")])
    if request.messages[-1].role != chat_pb2.CHAT_ROLE_USER:
        last = len(request.messages) - 1
        raise InvalidRequest([Violation(f"messages[{last}].role", "the last message must be the user's")])
    return [Message(_ROLES[message.role], message.content) for message in request.messages]


def _options(request: Request) -> ChatOptions:
    options = ("temperature", "top_p", "seed")
    given = {name: getattr(request, name) for name in options if request.HasField(name)}  # type: ignore[arg-type]
    stop = tuple(request.stop)
    of_caller = frozenset(given.keys() - {"seed"} | ({"stop"} if stop else set()))  # a seed is only a wish
    return ChatOptions(request.max_output_tokens or _MAX_OUTPUT_TOKENS, stop=stop, of_caller=of_caller, **given)
