# SPDX-License-Identifier: Apache-2.0
"""The most memory that a process has had, and work in a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


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


def apart(work: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a module, called in a fresh process: its memory is its own."""

    def call(*arguments: Any) -> Any:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(work, arguments)

    return call
