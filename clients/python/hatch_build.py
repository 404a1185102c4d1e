"""Puts the contract, which lies beside this folder, into what is built."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ContractHook(BuildHookInterface[Any]):
    """The wheel has the packages `quintet` and `buf`; the sdist has their sources, for a wheel to be built from it.

    An editable install has neither: dev-mode-dirs puts the folder itself on the import path.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        beside, inside = Path(self.root).parents[1] / "protos", Path(self.root) / "protos"
        protos = beside if beside.is_dir() else inside
        prefix = "protos/" if self.target_name == "sdist" else ""
        if version != "editable":
            for package in ("quintet", "buf"):
                build_data["force_include"][str(protos / package)] = prefix + package
