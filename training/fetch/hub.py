"""The model hub as a source.

Where the hub cannot be reached, finding that out costs at most 3 seconds, once a run: the first question decides
for all that follow. QUINTET_HUB=off asks nothing.
"""

import os
import threading
import urllib.error
import urllib.request

from training.fetch.lock import HubSource

BUDGET_SECONDS = 3.0
_ANSWERS = range(200, 500)  # also a refusal shows that somebody is there


class Hub:
    """Knows the hub's URLs, and whether it is there."""

    def __init__(self, endpoint: str | None = None, *, budget: float = BUDGET_SECONDS) -> None:
        self._endpoint = endpoint
        self._budget = budget
        self._lock = threading.Lock()
        self._reachable: bool | None = None
        if os.environ.get("QUINTET_HUB", "").lower() in ("off", "0", "false") or os.environ.get("HF_HUB_OFFLINE"):
            self._reachable = False

    def reachable(self) -> bool:
        """Whether the hub answers. The first caller waits up to the budget, the others for the first."""
        with self._lock:
            if self._reachable is None:
                self._reachable = self._ask()
            return self._reachable

    def url_of(self, source: HubSource, content: str) -> str:
        """Where a file of a repository lies."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(source.repository, source.name_of(content), revision=source.revision, endpoint=self._endpoint)

    def _ask(self) -> bool:
        """A name server may hang longer than any socket's timeout, so the question is asked on a thread of its own."""
        answered = threading.Event()
        result: list[bool] = []

        def ask() -> None:
            from huggingface_hub import constants

            request = urllib.request.Request(self._endpoint or constants.ENDPOINT, method="HEAD")  # noqa: S310
            try:
                with urllib.request.urlopen(request, timeout=self._budget):  # noqa: S310
                    result.append(True)
            except urllib.error.HTTPError as error:
                result.append(error.code in _ANSWERS)
            except OSError:
                pass
            answered.set()

        threading.Thread(target=ask, daemon=True, name="hub").start()
        answered.wait(self._budget)
        return bool(result and result[0])
