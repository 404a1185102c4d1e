"""What engines promise and the plain values that they return. The servicers know these and nothing behind them.

Every method is a coroutine that never blocks the event loop; its work runs on lanes (`server/runtime/lanes.py`),
threads or another process. Cancelling the coroutine abandons the work. `deadline` is a `time.monotonic()` instant:
work that has not begun by then is not begun, and `DeadlineExceeded` is raised.
"""

from server.engines.interfaces.analysis import (
    AnalysisTask,
    AnalysisValue,
    Analyzer,
    Entity,
    KeyPhrase,
    LanguageIdentifier,
    Linguist,
    Linguistics,
    Span,
    TaskFailed,
    TaskResult,
    Token,
)
from server.engines.interfaces.chat import (
    ChatAnswer,
    ChatDone,
    ChatModel,
    ChatOptions,
    FinishReason,
    Message,
    TextDelta,
    Usage,
    UsageSource,
)
from server.engines.interfaces.models import Described, Feature, ModelDescription, ModelIdentity, ModelTask
from server.engines.interfaces.pricing import House, PriceEstimate, Pricer
from server.engines.interfaces.rag import (
    Answerer,
    AskDone,
    AskSources,
    Document,
    IndexDescription,
    IndexIdentity,
    Passage,
    Retrieval,
    Retriever,
    Written,
)
from server.engines.interfaces.texts import Classification, Classifier, Embedder, Label

__all__ = [
    "AnalysisTask",
    "AnalysisValue",
    "Analyzer",
    "Answerer",
    "AskDone",
    "AskSources",
    "ChatAnswer",
    "ChatDone",
    "ChatModel",
    "ChatOptions",
    "Classification",
    "Classifier",
    "Described",
    "Document",
    "Embedder",
    "Entity",
    "Feature",
    "FinishReason",
    "House",
    "IndexDescription",
    "IndexIdentity",
    "KeyPhrase",
    "Label",
    "LanguageIdentifier",
    "Linguist",
    "Linguistics",
    "Message",
    "ModelDescription",
    "ModelIdentity",
    "ModelTask",
    "Passage",
    "PriceEstimate",
    "Pricer",
    "Retrieval",
    "Retriever",
    "Span",
    "TaskFailed",
    "TaskResult",
    "TextDelta",
    "Token",
    "Usage",
    "UsageSource",
    "Written",
]
