# SPDX-License-Identifier: Apache-2.0
"""The loop of embedding nudging: generate, filter, nudge, regenerate."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from shielded.errors import NonFinite, NotApplicable, ShieldedWarning
from shielded.guidance import Guidance, Shift, Step, expand
from shielded.methods.answers import greyed, shown
from shielded.methods.draws import assemble
from shielded.methods.filters.verdict import Verdict, judge
from shielded.methods.method import CallRun, MethodRun

if TYPE_CHECKING:
    from shielded.methods.nudging import EmbeddingNudging

__all__ = ["Idle", "Nudged", "NudgingRun", "Tried"]

GROWTH = 2.0  # of the rate, from try to try

States = list[tuple[Callable[[Tensor], Any], Tensor]]  # how to set a state, and the state


@dataclass(frozen=True, slots=True)
class Idle:
    """A sampling call at which an image had no usable gradient, and was left where it was."""

    generation: int
    call: int
    index: int


@dataclass(frozen=True, slots=True)
class Tried:
    """One image made once: how strongly it was nudged (0: not at all), and what filters said.

    `idle` counts its sampling calls without a usable gradient; `error` says why the sampler could
    not make it.
    """

    generation: int
    rate: float
    verdicts: tuple[Verdict, ...]
    idle: int = 0
    error: str | None = None

    @property
    def clear(self) -> bool:
        """Whether it was made and judged, and no filter fired."""
        return self.error is None and not self.fired

    @property
    def fired(self) -> tuple[Verdict, ...]:
        """The verdicts against it."""
        return tuple(v for v in self.verdicts if v.fires)


@dataclass(frozen=True, slots=True)
class Nudged:
    """How one image ended: "passed" as it was, "nudged" until it was clear, or "withheld"."""

    index: int
    group: Hashable
    tries: tuple[Tried, ...]
    outcome: str


class _Try(Guidance):
    """The method at one try: for some images, each with its own aim, at a rate."""

    def __init__(self, method: EmbeddingNudging, aims: dict[int, Tensor | None], rate: float):
        self.method, self.aims, self.rate = method, aims, rate
        self.idle: list[int] = []

    def shift(self, step: Step) -> Shift | None:
        shift, self.idle = self.method.move(step, self.aims, self.rate)
        return shift


class NudgingRun(CallRun):
    """One block: also `idle`, gradients of no use, and with filters `nudged`, image by image."""

    chooses = "filters"

    def __init__(self, method: EmbeddingNudging, pipe: Any, groups: Sequence[Hashable] | None):
        super().__init__(method, pipe, groups)
        self.method = method
        self.idle: list[Idle] = []
        self.nudged: list[Nudged] = []

    def shift(self, step: Step) -> Shift | None:
        """The shift of x0 at this sampling call; what was left alone is noted."""
        if self.method.filters and self.guidance is self.method:
            raise NotApplicable("filters look at what pipe(...) returns: call it in the block.")
        call, shift = self.calls, super().shift(step)
        left: list[int] = self.guidance.idle  # type: ignore[attr-defined]
        self.idle += [Idle(self.generation, call, b) for b in left]
        return shift

    def finish(self, sample: Tensor) -> Tensor:
        """Refuse what is not finite; take note of the rest."""
        return super().finish(MethodRun.finish(self, sample))

    def call(self, plain: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """One call of the pipeline, made again for images that fail until they pass."""
        method, before = self.method, _states(arguments)
        try:
            answer, sample = self._make(plain, arguments, {}, 0.0)
            loop = _Loop(self, len(sample), arguments)
            loop.add(answer, sample, list(range(len(sample))), 0.0)
            after = _states(arguments)
            for k in range(method.tries):
                aims = {b: method.aim(loop.away[b]) for b in loop.failing}
                rate = method.rate * GROWTH**k
                if not rate or all(aim is None for aim in aims.values()):
                    break  # there is nothing that another try would change
                _restore(before)
                try:
                    loop.add(*self._make(plain, arguments, aims, rate), list(aims), rate)
                except NonFinite as error:  # pushed so far that the model broke down
                    loop.fail(list(aims), rate, str(error))
                _restore(after)
                if not loop.failing:
                    break
        finally:
            self.guidance = method
        return loop.end()

    def _make(
        self,
        plain: Callable[..., Any],
        arguments: dict[str, Any],
        aims: dict[int, Tensor | None],
        rate: float,
    ) -> tuple[Any, Tensor]:
        self.guidance = _Try(self.method, aims, rate)
        return self.once(plain, arguments)


class _Loop:
    """All that was made for one call: who failed, why, and where each image comes from."""

    def __init__(self, run: NudgingRun, count: int, arguments: dict[str, Any]):
        self.run, self.count, self.arguments = run, count, arguments
        self.groups = expand(run.groups, count)
        self.tries: list[list[Tried]] = [[] for _ in range(count)]
        self.away: list[list[Tensor]] = [[] for _ in range(count)]
        self.places: dict[int, tuple[int, int]] = {}  # of those that are clear: draw, row
        self.answers: list[Any] = []
        self.sample = torch.empty(0)

    @property
    def failing(self) -> list[int]:
        """The images that are not clear yet."""
        return [b for b in range(self.count) if b not in self.places]

    def add(self, answer: Any, sample: Tensor, rows: list[int], rate: float) -> None:
        """Judge these rows of one answer."""
        run = self.run
        films = shown(answer, sample, run.pipe, self.arguments)[rows]
        found = [(one, judge(one, films, sample[rows])) for one in run.method.filters]
        for n, b in enumerate(rows):
            for one, each in found:
                away = each[n][1]
                if each[n][0].fires and away is not None and run.method.names(one):
                    self.away[b].append(away.flatten())
            verdicts = tuple(each[n][0] for _, each in found)
            self.tries[b].append(Tried(run.generation, rate, verdicts, self._idle(b)))
            if self.tries[b][-1].clear:
                self.places[b] = len(self.answers), b
        self.answers.append(answer)
        self.sample = sample

    def fail(self, rows: list[int], rate: float, error: str) -> None:
        """Note a try in which nothing was made."""
        for b in rows:
            self.tries[b].append(Tried(self.run.generation, rate, (), self._idle(b), error))

    def end(self) -> Any:
        """The answer, every image in it clear or withheld; the record of each is kept."""
        withheld = self.failing
        for b, tries in enumerate(self.tries):
            outcome = "nudged" if len(tries) > 1 else "passed"
            outcome = "withheld" if b in withheld else outcome
            self.run.nudged.append(Nudged(b, self.groups[b], tuple(tries), outcome))
        if all(draw == 0 for draw, _ in self.places.values()) and not withheld:
            return self.answers[0]
        if withheld:
            self._warn(withheld)
            self.answers.append(greyed(self.answers[-1], self.sample, self.arguments))
        grey = len(self.answers) - 1
        places = [self.places.get(b, (grey, b)) for b in range(self.count)]
        return assemble(self.answers, [self.count] * len(self.answers), places)

    def _idle(self, b: int) -> int:
        run = self.run
        return sum(one.generation == run.generation and one.index == b for one in run.idle)

    def _warn(self, withheld: list[int]) -> None:
        last = [t for b in withheld for t in self.tries[b] if not t.clear]
        names = dict.fromkeys(v.filter for t in last for v in t.fired)
        errors = [e for t in last for e in (t.error, *(v.error for v in t.fired)) if e]
        why = f" One could not be judged: {errors[0]}" if errors else ""
        warnings.warn(
            f"{len(withheld)} of {self.count} images are withheld and grey: after "
            f"{max(len(self.tries[b]) for b in withheld)} tries {', '.join(names)} still fired. "
            f"run.nudged tells at what.{why}",
            ShieldedWarning,
            stacklevel=5,
        )


def _states(arguments: dict[str, Any]) -> States:
    """Where every source of randomness stands that a call may use, and how to set it back."""
    given = arguments.get("generator")
    generators = given if isinstance(given, list) else [given]
    states: States = [(g.set_state, g.get_state()) for g in generators if isinstance(g, Generator)]
    states.append((torch.set_rng_state, torch.get_rng_state()))
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for n, state in enumerate(torch.cuda.get_rng_state_all()):
            states.append((lambda state, n=n: torch.cuda.set_rng_state(state, n), state))
    if torch.backends.mps.is_available():
        states.append((torch.mps.set_rng_state, torch.mps.get_rng_state()))
    return states


def _restore(states: States) -> None:
    for set_back, state in states:
        set_back(state)
