"""What is asked, the same of everybody."""

from dataclasses import asdict

from quintet.v1 import analysis_pb2, chat_pb2, classification_pb2, pricing_pb2, rag_pb2

from server.domain.pricing import House

TEXT = "The battery lasts two days and the screen is a joy to look at."
QUERY = "Who wrote the first program for a computing machine?"
HOUSE = House(
    1710, 8450, 7, 5, 2003, 2003, 856, 2, 2, 1, 3, 8, 0, "CollgCr", "1Fam", "2Story", True, "Gd"
)  # fmt: skip

CLASSIFY = classification_pb2.ClassifyRequest(texts=[TEXT])
CLASSIFY_MANY = classification_pb2.ClassifyRequest(texts=[f"{TEXT} {number}" for number in range(16)])
PRICE = pricing_pb2.PredictPriceRequest(houses=[pricing_pb2.House(**asdict(HOUSE))])
RETRIEVE = rag_pb2.RetrieveRequest(query=QUERY, top_k=5)
ANALYZE = analysis_pb2.AnalyzeRequest(
    text="Ada Lovelace lived in London. She wrote the first program for a machine that was never built. " * 8,
    tasks=[
        analysis_pb2.ANALYSIS_TASK_ENTITIES,
        analysis_pb2.ANALYSIS_TASK_SYNTAX,
        analysis_pb2.ANALYSIS_TASK_SENTENCES,
    ],
)


def chat(tokens: int, pause_ms: int = 0) -> chat_pb2.StreamChatRequest:
    """So many chunks, all at once or with pauses between them (upstream.py)."""
    message = chat_pb2.ChatMessage(role=chat_pb2.CHAT_ROLE_USER, content="Hi.")
    request = chat_pb2.StreamChatRequest(messages=[message], max_output_tokens=tokens)
    if pause_ms:
        request.seed = pause_ms
    return request
