"""Who calls, and whether they may."""

from typing import Any, Protocol

from server.calls import Caller


class Auth(Protocol):
    """Knows the callers."""

    def identify(self, method: str, context: Any) -> Caller:
        """The caller of "/quintet.v1.ChatService/Chat". Raises Unauthenticated or PermissionDenied."""
        ...
