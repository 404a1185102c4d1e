"""A small server behind the same contract: real gRPC on a real port, with simple rules in place of models."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from quintet.v1 import (
    chat_pb2,
    chat_pb2_grpc,
    classification_pb2,
    classification_pb2_grpc,
    common_pb2,
    pricing_pb2,
    pricing_pb2_grpc,
    rag_pb2,
    rag_pb2_grpc,
)

from tests.clients.desk import Desk

MODEL = common_pb2.ModelRef(name="rules", version="1-abc", digest="sha256:0")
Context = Any  # the stubs' context is both kinds at once, which no real one is


class Classification(classification_pb2_grpc.ClassificationServiceServicer):
    """Counts good and bad words."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def Classify(
        self, request: classification_pb2.ClassifyRequest, context: Context
    ) -> classification_pb2.ClassifyResponse:
        self.desk.enter("Classify", request, context)
        results = []
        for text in request.texts:
            sign = len(re.findall("love|good", text)) - len(re.findall("hate|bad", text))
            best = "positive" if sign > 0 else "negative" if sign < 0 else "neutral"
            names = sorted(("negative", "neutral", "positive"), key=lambda name: name != best)
            labels = [common_pb2.Label(label=n, score=s) for n, s in zip(names, (0.75, 0.1875, 0.0625), strict=True)]
            results.append(
                classification_pb2.ClassificationResult(
                    labels=labels[: request.top_k or None], truncated=len(text) > 100
                )
            )
        return classification_pb2.ClassifyResponse(results=results, model=MODEL)


class Pricing(pricing_pb2_grpc.PricingServiceServicer):
    """A price by the square foot."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def PredictPrice(
        self, request: pricing_pb2.PredictPriceRequest, context: Context
    ) -> pricing_pb2.PredictPriceResponse:
        self.desk.enter("PredictPrice", request, context)
        prices = [house.above_ground_area_sqft * 20 * house.overall_quality for house in request.houses]
        estimates = [pricing_pb2.PriceEstimate(price_usd=p, low_usd=p * 0.75, high_usd=p * 1.25) for p in prices]
        return pricing_pb2.PredictPriceResponse(estimates=estimates, model=MODEL)


class Chat(chat_pb2_grpc.ChatServiceServicer):
    """Says the last message again. "wait" in it: after the first word, it waits to be cancelled."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def Chat(self, request: chat_pb2.ChatRequest, context: Context) -> chat_pb2.ChatResponse:
        self.desk.enter("Chat", request, context)
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
        self.desk.ended.clear()
        context.add_callback(self.desk.ended.set)
        self.desk.enter("StreamChat", request, context)
        words, usage = self._answer(request)
        for index, word in enumerate(words):
            yield chat_pb2.StreamChatResponse(delta=common_pb2.TextDelta(text=word))
            if index == 0 and "wait" in request.messages[-1].content:
                self.desk.ended.wait(30)
            self.desk.enter("StreamChat:delta", request, context)
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


class Rag(rag_pb2_grpc.RagServiceServicer):
    """Documents in memory; a passage is a whole document, its score the share of the query's words in it."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.collections: dict[str, dict[str, rag_pb2.Document]] = {}
        self.generation = 0

    def _index(self, collection: str) -> common_pb2.IndexRef:
        return common_pb2.IndexRef(collection=collection, generation=self.generation)

    def _find(self, query: str, collection: str, top_k: int) -> list[tuple[float, rag_pb2.Document]]:
        words = set(re.findall(r"\w+", query.lower()))
        documents = self.collections.get(collection, {}).values()
        scored = [(len(words & set(re.findall(r"\w+", each.text.lower()))) / len(words), each) for each in documents]
        return sorted((pair for pair in scored if pair[0]), key=lambda pair: -pair[0])[:top_k]

    def Ask(self, request: rag_pb2.AskRequest, context: Context) -> rag_pb2.AskResponse:
        self.desk.enter("Ask", request, context)
        found = self._find(request.question, request.collection, request.top_k or 3)
        return rag_pb2.AskResponse(
            answer=found[0][1].text if found else "",
            citations=self._citations(found),
            grounded=bool(found),
            model=MODEL,
            index=self._index(request.collection),
        )

    def StreamAsk(self, request: rag_pb2.StreamAskRequest, context: Context) -> Iterator[rag_pb2.StreamAskResponse]:
        self.desk.enter("StreamAsk", request, context)
        found = self._find(request.question, request.collection, request.top_k or 3)
        index = self._index(request.collection)
        yield rag_pb2.StreamAskResponse(sources=rag_pb2.AskSources(citations=self._citations(found), index=index))
        for word in found[0][1].text.split() if found else ():
            yield rag_pb2.StreamAskResponse(delta=common_pb2.TextDelta(text=f"{word} "))
        reason = common_pb2.FINISH_REASON_STOP if found else common_pb2.FINISH_REASON_NO_PASSAGES
        done = rag_pb2.AskDone(finish_reason=reason, grounded=bool(found), model=MODEL, index=index)
        yield rag_pb2.StreamAskResponse(done=done)

    @staticmethod
    def _citations(found: Sequence[tuple[float, rag_pb2.Document]]) -> list[rag_pb2.Citation]:
        return [
            rag_pb2.Citation(document_id=each.id, title=each.title, snippet=each.text, score=score, uri=each.uri)
            for score, each in found
        ]

    def Retrieve(self, request: rag_pb2.RetrieveRequest, context: Context) -> rag_pb2.RetrieveResponse:
        self.desk.enter("Retrieve", request, context)
        found = self._find(request.query, request.collection, request.top_k or 5)
        passages = [
            rag_pb2.Passage(document_id=each.id, title=each.title, text=each.text, score=score) for score, each in found
        ]
        return rag_pb2.RetrieveResponse(passages=passages, index=self._index(request.collection), model=MODEL)

    def AddDocuments(self, request: rag_pb2.AddDocumentsRequest, context: Context) -> rag_pb2.AddDocumentsResponse:
        self.desk.enter("AddDocuments", request, context)
        documents = self.collections.setdefault(request.collection, {})
        unchanged = sum(documents.get(each.id) == each for each in request.documents)
        known = sum(each.id in documents for each in request.documents)
        documents.update({each.id: each for each in request.documents})
        self.generation += 1
        return rag_pb2.AddDocumentsResponse(
            index=self._index(request.collection),
            added_count=len(request.documents) - known,
            updated_count=known - unchanged,
            unchanged_count=unchanged,
        )

    def DeleteDocuments(
        self, request: rag_pb2.DeleteDocumentsRequest, context: Context
    ) -> rag_pb2.DeleteDocumentsResponse:
        self.desk.enter("DeleteDocuments", request, context)
        documents = self.collections.get(request.collection, {})
        deleted = [documents.pop(each, None) for each in request.document_ids]
        self.generation += 1
        return rag_pb2.DeleteDocumentsResponse(
            index=self._index(request.collection), deleted_count=sum(each is not None for each in deleted)
        )

    def GetIndex(self, request: rag_pb2.GetIndexRequest, context: Context) -> rag_pb2.GetIndexResponse:
        self.desk.enter("GetIndex", request, context)
        count = len(self.collections.get(request.collection, {}))
        return rag_pb2.GetIndexResponse(index=self._index(request.collection), document_count=count)
