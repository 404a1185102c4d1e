"""Client of Quintet: classification, house prices, chat, answers from documents and text analysis over gRPC.

    from quintet_client import QuintetClient

    with QuintetClient("127.0.0.1:50051") as client:
        response = client.classify(["I love it", "meh"])
        print([result.labels[0].label for result in response.results])

`AsyncQuintetClient` has the same methods as coroutines. Every failure is a `QuintetError` (`quintet_client.errors`).
"""

from quintet_client.aio import AsyncQuintetClient
from quintet_client.client import QuintetClient
from quintet_client.errors import QuintetError
from quintet_client.inputs import ChatOptions, Document, House, Message

__version__ = "0.1.0"
__all__ = ["AsyncQuintetClient", "ChatOptions", "Document", "House", "Message", "QuintetClient", "QuintetError"]
