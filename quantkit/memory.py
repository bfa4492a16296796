"""Peak memory of this process, bytes."""

from __future__ import annotations

import ctypes
from pathlib import Path

_MMAP_THRESHOLD = -3  # of mallopt, malloc.h


def reset_peak() -> None:
    """Start the peak anew, where the kernel offers it (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def return_large_blocks(size: int = 4 << 20) -> None:
    """Have blocks of `size` bytes and more go back to the system when they are freed, where the C library offers it (glibc):
    it would keep them, up to 32 MiB each, for every one of its pools of threads."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, size)


def release() -> None:
    """Give freed memory back to the system, where the C library offers it (glibc): between steps whose threads come and go it
    would pile up in pieces."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak() -> int:
    """Peak resident memory since the last `reset_peak`; where that is not offered, since the process began.

    On Linux VmHWM, because ru_maxrss is inherited from the parent.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
    return _kilobytes(status, "VmHWM")


def resident() -> int:
    """Resident memory now; where the system does not say, the peak so far."""
    try:
        return _kilobytes(Path("/proc/self/status").read_text(), "VmRSS")
    except OSError:
        return peak()


def _kilobytes(status: str, name: str) -> int:
    return int(next(line for line in status.splitlines() if line.startswith(f"{name}:")).split()[1]) * 1024
