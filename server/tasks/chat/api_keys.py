"""API keys of providers. Those in files are followed: a new key is used without a restart."""

from collections.abc import Callable
from pathlib import Path

from server.domain.reloading_file import BadFile, Contents, ReloadingFile

NO_KEY = "none"  # the SDK wants a key even if the endpoint does not
Key = Callable[[], str]


class KeyFile(ReloadingFile[str]):
    """A file with the API key of a provider, and white space around it at most."""

    def __init__(self, provider: str, path: Path) -> None:
        """Raises BadFile, without the key."""
        self.path = path
        super().__init__(f"API key of provider {provider}", [path], self._key)

    def __call__(self) -> str:
        return self.latest

    def _key(self, contents: Contents) -> str:
        try:
            return checked_key(contents[0].decode("utf-8"), str(self.path))
        except UnicodeDecodeError:
            raise BadFile(f"{self.path}: not UTF-8") from None


def checked_key(text: str, source: str) -> str:
    """Raises BadFile, without the key."""
    key = text.strip()
    if not key or not is_header(key):
        raise BadFile(f"{source} is missing, empty or no line of printable ASCII")
    return key


def is_header(value: str) -> bool:
    return value.isascii() and value.isprintable()
