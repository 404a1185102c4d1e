"""The scripts that Redis runs, files of Lua beside this one, and what they are run with."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

Fill = Callable[[int], Mapping[str, Any]]  # the script's argument, for the offset of Redis's clock


class Script:
    """A file of Lua beside this one."""

    def __init__(self, name: str) -> None:
        self.source = files(__package__).joinpath(name).read_bytes()
        self.digest = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


ENTER, SETTLE = Script("enter.lua"), Script("settle.lua")


@dataclass(slots=True)
class Message:
    """What a script is run with."""

    script: Script
    keys: Sequence[str]
    fill: Fill
    tries: int = 0
    answer: "asyncio.Future[list[Any]] | None" = field(default=None)
