# SPDX-License-Identifier: Apache-2.0
"""The most memory that a process has had."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak() -> int:
    """The most memory that this process has had since its program started, in bytes.

    On Linux as VmHWM: ru_maxrss starts with that of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
