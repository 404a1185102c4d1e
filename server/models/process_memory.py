"""The memory of a process as the system sees it, and giving it back."""

import contextlib
import ctypes
import gc
import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SELF = Path("/proc/self")


def resident_bytes(pid: int | None = None) -> int:
    """What a process, this one by default, has in memory (the RSS of proc_pid_statm(5)). 0 if there is none such."""
    try:
        return int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0


def forget_peak() -> None:
    """Begin to measure the peak anew (proc_pid_clear_refs(5)); where that is not allowed, the peak is the old one."""
    with contextlib.suppress(OSError):
        (_SELF / "clear_refs").write_text("5")


def peak_bytes(pid: int | None = None) -> int:
    """The largest RSS of a process, this one by default, since forget_peak() or its beginning. 0 if there is none."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid or 'self'}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resident_bytes(pid)


def trim() -> None:
    """Return what is free to the system: malloc_trim(3), which glibc alone has. It takes some milliseconds."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def freeze() -> None:
    """Take what exists now, mostly modules, out of all later collections but collect_all().

    A collection holds the GIL. Over the 300,000 objects of the libraries it takes 170 ms, in which nobody is served;
    over what is made after this, a few.
    """
    gc.collect()
    gc.freeze()


def collect_all() -> None:
    """A collection of everything, for what may have been frozen."""
    gc.unfreeze()
    freeze()
