"""The model hub as a source. QUINTET_HUB=off or HF_HUB_OFFLINE switches it off.

Files are fetched by `Downloader` from the URLs of huggingface_hub: `hf_hub_download` of 2.4 writes each attempt into a
new temporary file, so the next run would fetch an interrupted gigabyte from its beginning.
"""

import os
import queue
import threading
import urllib.error
import urllib.request

from training.fetch.lock import HubSource

TIMEOUT_SECONDS = 3.0


class Hub:
    """Knows the hub's URLs, and whether it can be reached: the first answer holds for the whole run."""

    def __init__(self, endpoint: str | None = None, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._endpoint = endpoint
        self._timeout = timeout
        self._lock = threading.Lock()
        is_off = os.environ.get("QUINTET_HUB", "").lower() in ("off", "0", "false") or os.environ.get("HF_HUB_OFFLINE")
        self._reachable: bool | None = False if is_off else None

    def reachable(self) -> bool:
        """Whether the hub answers within the timeout. Concurrent callers wait for the first one's answer."""
        with self._lock:
            if self._reachable is None:
                answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
                # A name server may block for longer than any socket timeout, so another thread waits for it.
                threading.Thread(target=lambda: answers.put(self._responds()), daemon=True, name="hub").start()
                try:
                    self._reachable = answers.get(timeout=self._timeout)
                except queue.Empty:
                    self._reachable = False
            return self._reachable

    def url_of(self, source: HubSource, path: str) -> str:
        """The URL of a file of a repository."""
        from huggingface_hub import hf_hub_url

        name = source.names.get(path, path)
        return hf_hub_url(source.hub, name, revision=source.revision, endpoint=self._endpoint)

    def _responds(self) -> bool:
        from huggingface_hub import constants

        request = urllib.request.Request(self._endpoint or constants.ENDPOINT, method="HEAD")  # noqa: S310
        try:
            urllib.request.urlopen(request, timeout=self._timeout).close()  # noqa: S310
        except urllib.error.HTTPError as error:
            return error.code < 500  # a refusal is an answer
        except OSError:
            return False
        return True
