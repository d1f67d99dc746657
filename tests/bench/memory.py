"""Peak resident memory of this process (Linux; nan elsewhere)."""

from __future__ import annotations

import math
from pathlib import Path


def peak_mib() -> float:
    """The peak since `forget_peak`, in MiB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return math.nan
    line = next(one for one in status.read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def forget_peak() -> float:
    """Let the kernel count the peak from now on; gives what is resident now, in MiB."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()
