"""The memory of a process as Linux counts it, and returning free memory to the system."""

import contextlib
import ctypes
import gc
import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SELF = Path("/proc/self")


def resident_bytes(pid: int | None = None) -> int:
    """Resident memory of a process, by default of this one (proc_pid_statm(5)); 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0


def forget_peak() -> None:
    """Reset the peak (proc_pid_clear_refs(5)), where that is allowed."""
    with contextlib.suppress(OSError):
        (_SELF / "clear_refs").write_text("5")


def peak_bytes(pid: int | None = None) -> int:
    """Largest resident memory of a process, by default of this one, since its start or forget_peak(); else 0."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid or 'self'}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resident_bytes(pid)


def trim() -> None:
    """Return free memory to the system with glibc's malloc_trim(3), where there is one. It takes some milliseconds."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def freeze() -> None:
    """Exclude all objects that exist now, mostly modules, from garbage collection until collect_all().

    A collection holds the GIL: 170 ms over the 300,000 objects of the libraries, a few over what is made later.
    """
    gc.collect()
    gc.freeze()


def collect_all() -> None:
    """Collect garbage, frozen objects too."""
    gc.unfreeze()
    freeze()
