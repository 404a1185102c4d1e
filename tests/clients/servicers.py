"""A small server behind the same contract: real gRPC on a real port, with simple rules in place of models."""

import re
from collections.abc import Iterator
from typing import Any

from quintet.v1 import (
    chat_pb2,
    chat_pb2_grpc,
    classification_pb2,
    classification_pb2_grpc,
    common_pb2,
    pricing_pb2,
    pricing_pb2_grpc,
)

from tests.clients.recorder import Recorder

MODEL = common_pb2.ModelRef(name="rules", version="1-abc", digest="sha256:0")
Context = Any  # the stubs' context is both kinds at once, which no real one is


class Classification(classification_pb2_grpc.ClassificationServiceServicer):
    """Counts good and bad words."""

    def Classify(
        self, request: classification_pb2.ClassifyRequest, context: Context
    ) -> classification_pb2.ClassifyResponse:
        results = []
        for text in request.texts:
            sign = len(re.findall("love|good", text)) - len(re.findall("hate|bad", text))
            best = "positive" if sign > 0 else "negative" if sign < 0 else "neutral"
            names = sorted(("negative", "neutral", "positive"), key=lambda name: name != best)
            labels = [common_pb2.Label(label=n, score=s) for n, s in zip(names, (0.75, 0.1875, 0.0625), strict=True)]
            results.append(
                classification_pb2.ClassificationResult(
                    labels=labels[: request.top_k or None],
                    truncated=len(text) > 100,
                    unknown_share=float(not text.isascii()),
                )
            )
        return classification_pb2.ClassifyResponse(results=results, model=MODEL)


class Pricing(pricing_pb2_grpc.PricingServiceServicer):
    """A price by the square foot."""

    def PredictPrice(
        self, request: pricing_pb2.PredictPriceRequest, context: Context
    ) -> pricing_pb2.PredictPriceResponse:
        prices = [house.above_ground_area_sqft * 20 * house.overall_quality for house in request.houses]
        estimates = [pricing_pb2.PriceEstimate(price_usd=p, low_usd=p * 0.75, high_usd=p * 1.25) for p in prices]
        warnings = [
            pricing_pb2.RangeWarning(field=f"houses[{i}].bedrooms", value=house.bedrooms, minimum=0, maximum=8)
            for i, house in enumerate(request.houses)
            if house.bedrooms > 8
        ]
        return pricing_pb2.PredictPriceResponse(estimates=estimates, model=MODEL, warnings=warnings)


class Chat(chat_pb2_grpc.ChatServiceServicer):
    """Repeats the last message. If it contains "wait", the answer stops after one word until it is cancelled."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def Chat(self, request: chat_pb2.ChatRequest, context: Context) -> chat_pb2.ChatResponse:
        words, usage = self._answer(request)
        return chat_pb2.ChatResponse(
            message=chat_pb2.ChatMessage(role=chat_pb2.CHAT_ROLE_ASSISTANT, content="".join(words)),
            finish_reason=common_pb2.FINISH_REASON_STOP,
            usage=usage,
            model=MODEL,
        )

    def StreamChat(
        self, request: chat_pb2.StreamChatRequest, context: Context
    ) -> Iterator[chat_pb2.StreamChatResponse]:
        self.recorder.ended.clear()
        context.add_callback(self.recorder.ended.set)
        words, usage = self._answer(request)
        for index, word in enumerate(words):
            yield chat_pb2.StreamChatResponse(delta=common_pb2.TextDelta(text=word))
            if index == 0 and "wait" in request.messages[-1].content:
                self.recorder.ended.wait(30)
            self.recorder.record("StreamChat:delta", request, context)
        reason = common_pb2.FINISH_REASON_LENGTH if len(words) >= 20 else common_pb2.FINISH_REASON_STOP
        done = chat_pb2.ChatDone(finish_reason=reason, usage=usage, model=MODEL)
        yield chat_pb2.StreamChatResponse(done=done)

    @staticmethod
    def _answer(request: chat_pb2.ChatRequest | chat_pb2.StreamChatRequest) -> tuple[list[str], common_pb2.Usage]:
        words = [f"{word} " for word in ["You", "said:", *request.messages[-1].content.split()]]
        prompt = sum(len(message.content.split()) for message in request.messages)
        return words, common_pb2.Usage(
            prompt_tokens=prompt,
            completion_tokens=len(words),
            total_tokens=prompt + len(words),
            source=common_pb2.USAGE_SOURCE_PROVIDER,
            currency="USD",
        )
