"""Client of Quintet: classification, house prices, chat, answers from documents and text analysis over gRPC.

    from quintet_client import QuintetClient

    with QuintetClient("127.0.0.1:50051") as client:
        response = client.classify(["I love it", "meh"])
        print([result.labels[0].label for result in response.results])

`AsyncQuintetClient` has the same methods as coroutines. Every failure is a `QuintetError` (`quintet_client.errors`).

The package imports grpc and the contract (`quintet.v1`), never the server. `calls/` describes each method once (Call,
StreamCall, Stubs); `client.py` and `aio.py` make the calls; `connection.py` has what both share. `cli/` is the
`quintet` command. Read first: `calls/tasks.py`, `client.py`, `connection.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quintet_client.aio import AsyncQuintetClient
    from quintet_client.client import QuintetClient
    from quintet_client.errors import QuintetError
    from quintet_client.inputs import ChatOptions, Document, House, Message

__version__ = "0.1.0"
__all__ = ["AsyncQuintetClient", "ChatOptions", "Document", "House", "Message", "QuintetClient", "QuintetError"]

_MODULES = {"AsyncQuintetClient": "aio", "QuintetClient": "client", "QuintetError": "errors"}


def __getattr__(name: str) -> object:
    """Import on first use: the `quintet` command must set gRPC's environment before grpc is imported."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'inputs')}"), name)
