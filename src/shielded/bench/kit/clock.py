# SPDX-License-Identifier: Apache-2.0
"""Clocks: of a function's calls, and of what a guidance adds to its scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from shielded.guidance import Guidance


class Watched:
    """A guidance, and the wall time that it adds to the scheduler's own.

    Both clocks run in one and the same run, so a machine that is slow for a while slows both.
    """

    def __init__(self, guidance: Guidance) -> None:
        self.guidance, self.bare, self.whole = guidance, Clock(), Clock()

    @property
    def seconds(self) -> float:
        """The time of the guidance alone."""
        return self.whole.seconds - self.bare.seconds

    @contextmanager
    def on(self, pipe: Any) -> Iterator[Any]:
        """As Guidance.on, with one clock inside it and one around it."""
        scheduler, plain = pipe.scheduler, type(pipe.scheduler)
        members = {"step": self.bare.around(plain.step), "__module__": plain.__module__}
        scheduler.__class__ = type(plain.__name__, (plain,), members)
        try:
            with self.guidance.on(pipe) as run:
                scheduler.step = self.whole.around(scheduler.step)
                try:
                    yield run
                finally:
                    del scheduler.step
        finally:
            scheduler.__class__ = plain


class Clock:
    """Adds up the wall time of a function's calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed
