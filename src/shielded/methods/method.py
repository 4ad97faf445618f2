# SPDX-License-Identifier: Apache-2.0
"""Method: what the siblings of SPELL share: a run that counts the network's work."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from shielded.errors import NotApplicable
from shielded.guidance import Guidance, Run, Shift, Step
from shielded.samplers.network import intercepted, networks
from shielded.samplers.scheduler import installed
from shielded.spaces.space import bound

__all__ = ["CallRun", "Method", "MethodRun", "PipelineMethod"]


class MethodRun(Run):
    """One `with` block of a method: also its cost.

    `evaluations` is how many images the network was asked to denoise: guidance asks twice for
    each. A sampler whose network is not known counts one an image and sampling call.
    """

    def __init__(self, method: Method, pipe: Any, groups: Sequence[Hashable] | None):
        super().__init__(method, groups, bound(method.space, pipe), pipe)
        self.evaluations = 0
        self._known = bool(networks(pipe))

    def answer(self, plain: Callable[..., Any], first: str, arguments: dict[str, Any]) -> Any:
        """Stand in for a call of the network."""
        self.evaluations += len(arguments[first])
        return plain(**arguments)

    def shift(self, step: Step) -> Shift | None:
        """The shift of x0 at this sampling call."""
        if not self._known:
            self.evaluations += len(step.x0)
        return super().shift(step)


class CallRun(MethodRun):
    """A run that makes whole calls of the pipeline, and sees what each of them samples."""

    chooses: str  # who cannot tell images apart where a call samples twice

    def __init__(self, method: Method, pipe: Any, groups: Sequence[Hashable] | None):
        super().__init__(method, pipe, groups)
        self._finished: list[Tensor] = []

    def finish(self, sample: Tensor) -> Tensor:
        """Take note of what was made; it is returned as it is."""
        self._finished.append(sample)
        return sample

    def once(self, plain: Callable[..., Any], arguments: dict[str, Any]) -> tuple[Any, Tensor]:
        """What one call answers, and the latents that it sampled."""
        self._finished.clear()
        answer = plain(**arguments)
        if len(self._finished) != 1:
            raise NotApplicable(
                f"{type(self.pipe).__name__} samples {len(self._finished)} times in one call: "
                f"{self.chooses} cannot tell which images it returns."
            )
        return answer, self._finished[0]


class Method(Guidance):
    """Base of the siblings; `on` yields a `MethodRun`."""

    def start(self, pipe: Any, groups: Sequence[Hashable] | None) -> MethodRun:
        """The run of a block."""
        return MethodRun(self, pipe, groups)

    @contextmanager
    def on(self, pipe: Any, groups: Sequence[Hashable] | None = None) -> Iterator[MethodRun]:
        """Guide every image that a diffusers pipeline makes inside the `with` block.

        As `Guidance.on`; the run also counts `evaluations`. Raises NotApplicable where the
        method has nothing to act on, and UnsupportedScheduler.
        """
        self.prepare(pipe)
        run = self.start(pipe, groups)
        with intercepted(pipe, run.answer), installed(pipe, run):
            yield run


class PipelineMethod(Method):
    """Base of methods that need the pipeline itself: its network's calls, or whole images."""

    needs: str  # what that is, after the method's name

    def denoiser(self, fn: Callable[..., Tensor], groups: Sequence[Hashable] | None = None) -> Any:
        """Not possible: a denoiser function does not show what the method needs."""
        raise self._hidden()

    def correct(
        self,
        x0: Tensor,
        groups: Sequence[Hashable] | None = None,
        noise_level: float | None = None,
    ) -> Tensor:
        """Not possible: x0 alone does not show what the method needs."""
        raise self._hidden()

    def _hidden(self) -> NotApplicable:
        return NotApplicable(f"{type(self).__name__} {self.needs}: use .on(pipe) with a pipeline.")
