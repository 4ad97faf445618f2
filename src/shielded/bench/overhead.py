# SPDX-License-Identifier: Apache-2.0
"""What SPELL costs: paired runs in turn, and the time inside one run that is its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from statistics import median
from typing import Any

import torch
from torch import Tensor

from shielded.bench.sample import draw, pictures
from shielded.bench.table import Table
from shielded.guidance import Guidance
from shielded.models import load
from shielded.shields import Shields
from shielded.spell import Spell

PROMPT = "sword"


def run(smoke: bool = False, progress: Callable[[str], None] = lambda text: None) -> Table:
    """tiny-sprites at 16 images: wall time with SPELL on against runs without it."""
    pipe = load("tiny-sprites")
    pipe.set_progress_bar_config(disable=True)
    rounds, seeds = (2, range(2)) if smoke else (5, range(16))
    plain, _ = draw(pipe, PROMPT, seeds)
    ways = guidances(plain)
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    shares: dict[str, list[float]] = {name: [] for name in ways}
    seconds: list[float] = []
    for turn in range(rounds):
        progress(f"round {turn + 1} of {rounds}")
        for name, make in ways.items():
            before = _timed(lambda: draw(pipe, PROMPT, seeds))
            watched = Watched(make())
            spent = _timed(lambda watched=watched: draw(pipe, PROMPT, seeds, watched))
            after = _timed(lambda: draw(pipe, PROMPT, seeds))
            seconds.append(before)
            ratios[name].append(2 * spent / (before + after) - 1)
            shares[name].append(watched.seconds / (spent - watched.seconds))
    table = Table("overhead", f"What SPELL adds to a run of {len(seeds)} images")
    for name in ways:
        table.add(
            SPELL=name,
            **{
                "own time in the run": _percent(median(shares[name])),
                "from": _percent(min(shares[name])),
                "to": _percent(max(shares[name])),
                "against the runs beside it": _percent(median(ratios[name])),
                "from ": _percent(min(ratios[name])),
                "to ": _percent(max(ratios[name])),
                "runs": rounds,
            },
        )
    table.notes.append(f"A plain run takes {median(seconds):.2f} s (median).")
    return table


def guidances(plain: Tensor) -> dict[str, Callable[[], Any]]:
    """The ways to run: `plain` are the latents of the same seeds, whose median distance is r."""
    r = float(torch.pdist(pictures(plain).flatten(1)).median())
    far = Shields.images(plain + 100)
    return {
        "on, inactive": lambda: Spell(Shields.batch(radius=0.0) + far, radius=1.0),
        "batch shields, r = median": lambda: Spell(Shields.batch(), radius=r),
        "batch and history": lambda: Spell(radius=r),
    }


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


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _percent(share: float) -> str:
    return f"{100 * share:+.2f}%"
