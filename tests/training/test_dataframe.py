"""Pickles of strangers: only tables come out, and nothing else is called."""

import lzma
import os
import pickle
from pathlib import Path

import pytest

from training.datasets import dataframe
from training.datasets.dataframe import UnsafePickle, parse_dataframe, read_dataframe


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/quintet-evil",)


@pytest.mark.parametrize(
    "pickled",
    [
        pickle.dumps(_Evil()),
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy.testing._private.utils\nrunstring\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"Pname\n.",  # refers to something outside itself
    ],
)
def test_a_pickle_that_calls_anything_else_is_refused(pickled: bytes) -> None:
    with pytest.raises(UnsafePickle):
        parse_dataframe(pickled)
    assert not Path("/tmp/quintet-evil").exists()


def test_a_pickle_without_a_table_is_refused() -> None:
    with pytest.raises(UnsafePickle, match="no DataFrame"):
        parse_dataframe(pickle.dumps([1, 2, 3]))


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataframe, "UNPACKED_LIMIT", 1 << 20)
    (tmp_path / "bomb").write_bytes(lzma.compress(bytes(3 << 20)))
    with pytest.raises(UnsafePickle, match="longer than"):
        read_dataframe(tmp_path / "bomb")
