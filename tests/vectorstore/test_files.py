"""Arrays on disk."""

import gc
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from server.vectorstore.files import Writer, read_array


@pytest.fixture
def switching() -> Iterator[None]:
    """Garbage collections come often, and each lets another thread run: as in a busy server, many times as often."""

    def switch(*_: object) -> None:
        time.sleep(0)

    threshold, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(20, 2, 2)
    gc.callbacks.append(switch)
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
    gc.callbacks.remove(switch)
    gc.set_threshold(*threshold)


@pytest.mark.usefixtures("switching")
def test_headers_are_read_on_several_threads_at_once(tmp_path: Path) -> None:
    """np.load parses them with `ast`, which then fails now and then on Python 3.11: SystemError."""
    Writer(tmp_path).array("rows.npy", np.zeros((4, 3), np.float32))

    def read(depth: int) -> None:
        if depth:
            read(depth - 1)
        else:
            for _ in range(1500):
                read_array(tmp_path / "rows.npy")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(0, 64, 8)))


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64, np.float64])
@pytest.mark.parametrize("shape", [(0,), (3,), (0, 384), (5, 2)])
def test_what_was_written_is_read(tmp_path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    Writer(tmp_path).array("rows.npy", values)
    found = read_array(tmp_path / "rows.npy")
    assert (found.dtype, found.shape) == (values.dtype, shape)
    assert np.array_equal(found, values)
    assert np.array_equal(np.load(tmp_path / "rows.npy"), values), "the format is NumPy's"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"<f4", b"|O8"),
        (b"<f4", b"<f8"),
        (b"(4, 3)", b"(4, 9)"),
        (b"(4, 3)", b"(-4,3)"),
        (b"False", b"True "),
        (b"NUMPY\x01", b"NUMPY\x02"),
        (b"'shape'", b"exit(1)"),
    ],
)
def test_another_header_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    Writer(tmp_path).array("rows.npy", np.zeros((4, 3), np.float32))
    path = tmp_path / "rows.npy"
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new))
    with pytest.raises(ValueError, match=r"rows\.npy"):
        read_array(path)
