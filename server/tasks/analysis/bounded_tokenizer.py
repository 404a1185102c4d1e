"""A spaCy tokenizer whose time grows with the length of the text, whatever the text is.

spaCy strips prefixes and suffixes from a run without white space one after the other, and searches the rest of the run
each time: 5,000 times "$", "!", "'s" or an emoji took 2 to 14 s. Here no run is longer than MAX_RUN.
"""

import re
from itertools import pairwise
from typing import Any

MAX_RUN = 200  # code points; longer than words, and than most addresses, which are one token
_LONG_RUN = re.compile(rf"\S{{{MAX_RUN + 1},}}")


def cut_runs(text: str) -> list[str]:
    """The text in pieces, cut only inside of runs over MAX_RUN, into runs of at most MAX_RUN."""
    cuts = [cut for run in _LONG_RUN.finditer(text) for cut in range(run.start() + MAX_RUN, run.end(), MAX_RUN)]
    return [text[start:end] for start, end in pairwise((0, *cuts, len(text)))]


class BoundedTokenizer:
    """Takes the place of a pipeline's tokenizer. The documents have the same text, so that offsets stay right."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> Any:
        """A Doc."""
        from spacy.tokens import Doc

        made = [self._tokenizer(piece) for piece in cut_runs(text)]
        return Doc.from_docs(made, ensure_whitespace=False) if len(made) > 1 else made[0]
