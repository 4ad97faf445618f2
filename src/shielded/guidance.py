# SPDX-License-Identifier: Apache-2.0
"""Guidance: what every method is, and the three ways into a sampler.

A method answers one question: given what a model call knows (`Step`), where should its expected
output x0 be instead? In score terms, score' = score + (alpha / sigma^2) delta.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from shielded.distances import full_precision
from shielded.errors import NonFinite, ShapeMismatch, ShieldedWarning
from shielded.landing import Landing
from shielded.spaces.latent import Latent, exact
from shielded.spaces.space import Space, bound
from shielded.trace import Certificate, Record, Trace

__all__ = ["Guidance", "Run", "Shift", "Step"]

FAR = 0.9  # of the radius: a picture that landing moves so far has little left of itself


@dataclass(frozen=True, slots=True)
class Step:
    """One model call, x_t = alpha x0 + sigma eps; x0 (B, ...) is after classifier-free guidance.

    `box` is the interval that finished images are clipped to, where they are pixels.
    """

    x_t: Tensor
    x0: Tensor
    alpha: float
    sigma: float
    groups: tuple[Hashable, ...]
    timestep: float = float("nan")
    box: tuple[float, float] | None = None

    @property
    def noise_level(self) -> float:
        """sigma / (alpha + sigma): the flow-matching time of the same signal to noise ratio."""
        return self.sigma / (self.alpha + self.sigma) if self.sigma else 0.0

    @property
    def noise(self) -> Tensor:
        """x_t - alpha x0, as (B, D) float64."""
        return torch.sub(flat(self.x_t), flat(self.x0), alpha=self.alpha)

    @property
    def expected(self) -> Tensor:
        """The expected images as they would be returned, clip(x0), as (B, D) float64."""
        x0 = flat(self.x0)
        return x0 if self.box is None else x0.clamp(*self.box)


class Shift(NamedTuple):
    """A shift of x0: delta (B, D), zero for untouched images, and the shields each had to leave."""

    delta: Tensor
    active: Tensor

    @property
    def rows(self) -> Tensor:
        """The images that are moved."""
        return self.active.nonzero()[:, 0]


class Guidance:
    """Base of all methods. A subclass says `shift`, and `land` if it has a last word."""

    space: Space | None = None

    def shift(self, step: Step) -> Shift | None:
        """The shift of x0 for this call, or None to leave every image untouched."""
        raise NotImplementedError

    def land(self, sample: Tensor, space: Space, step: Step) -> Landing | None:
        """Check and move the finished images (B, ...), or None where there is nothing to check."""
        return None

    def prepare(self, pipe: Any) -> None:
        """Before the first generation of a block: does what the method holds fit the pipeline?"""
        return

    def begin(self) -> None:
        """Before each generation."""
        return

    @contextmanager
    def on(self, pipe: Any, groups: Sequence[Hashable] | None = None) -> Iterator[Run]:
        """Guide every image that a diffusers pipeline makes inside the `with` block.

        `pipe` is anything with a diffusers scheduler at `.scheduler`; the scheduler is the same
        object, and plain again, on exit and on error. `groups` are keys, one an image or one a
        prompt (the images of a prompt follow one another): only images of one group see each
        other. Raises UnsupportedScheduler before anything is generated.
        """
        from shielded.samplers.scheduler import installed

        self.prepare(pipe)
        run = Run(self, groups, bound(self.space, pipe), pipe)
        with installed(pipe, run):
            yield run

    def denoiser(self, fn: Callable[..., Tensor], groups: Sequence[Hashable] | None = None) -> Any:
        """Wrap `fn(x, sigma, *args, **kwargs) -> x0` (EDM, EDM2, k-diffusion): x = x0 + sigma eps.

        The returned function has the same signature, the attribute `run` (trace, certificates)
        and a method `finish(images)` that lands and remembers what the sampler returned.
        """
        from shielded.samplers.denoiser import Denoiser

        return Denoiser(fn, Run(self, groups, self.space or Latent()))

    def correct(
        self,
        x0: Tensor,
        groups: Sequence[Hashable] | None = None,
        noise_level: float | None = None,
    ) -> Tensor:
        """x0 in, x0 out (B, ...): the `denoised_fn` of ADM, DiT and MDT samplers.

        Without a `noise_level` a method's window is taken to be open.
        """
        level = getattr(self, "window", (0.5,))[0] if noise_level is None else noise_level
        level = min(level, 1 - 1e-9)
        box = None if self.space is None else self.space.box
        step = Step(x0, x0, 1.0, level / (1 - level), expand(groups, len(x0)), box=box)
        shift = self.shift(step)
        return x0 if shift is None else moved(x0, shift.delta, shift.rows)


class Run:
    """One `with` block: its trace and certificates, and what an adapter calls."""

    def __init__(
        self,
        guidance: Guidance,
        groups: Sequence[Hashable] | None = None,
        space: Space | None = None,
        pipe: Any = None,
    ):
        self.guidance, self.groups, self.space = guidance, groups, space or Latent()
        self.pipe = pipe
        self.trace = Trace()
        self.certificates: list[Certificate] = []
        self.generation = -1
        self.calls = 0  # of this generation
        self.total = 0  # of all
        self._last: Step | None = None

    def begin(self) -> None:
        """A new generation starts with the next call."""
        bound(self.space, self.pipe)  # another block may have told it about another pipeline
        self.guidance.begin()
        self.generation += 1
        self.calls = 0
        self._last = None

    def shift(self, step: Step) -> Shift | None:
        """The shift of x0 at this call, recorded in the trace; None leaves all images untouched."""
        if not finite(step.x0):
            raise NonFinite(
                "the model's expected output holds NaN or infinity: try dtype=torch.float32, "
                "another seed or a lower guidance_scale."
            )
        if self._last is not None and self._last.x0.shape != step.x0.shape:
            raise ShapeMismatch(
                f"one generation passed latents of shapes {tuple(self._last.x0.shape)} and "
                f"{tuple(step.x0.shape)} to one scheduler: such a pipeline cannot be shielded."
            )
        self._last = step
        with full_precision(step.x0.device.type):
            shift = self.guidance.shift(step)
        self._record(step, shift)
        self.calls += 1
        self.total += 1
        return shift

    def finish(self, sample: Tensor) -> Tensor:
        """The generation's returned latents (B, ...), landed, certified and remembered."""
        step = self._last
        if step is None:
            step = Step(sample, sample, 1.0, 0.0, expand(self.groups, len(sample)))
        if not finite(sample):
            raise NonFinite("the sampler returned NaN or infinity: try dtype=torch.float32.")
        with full_precision(sample.device.type):
            landing = self.guidance.land(sample, self.space, step)
        if landing is None:
            return sample
        self.trace.landed[self.generation] = landing.moved
        _warn_far(landing)
        intervened = self.trace.intervened(self.generation)
        for b, nearest in enumerate(landing.nearest):
            self.certificates.append(
                Certificate(
                    self.generation,
                    b,
                    step.groups[b],
                    nearest.source,
                    nearest.reference,
                    nearest.distance,
                    nearest.radius,
                    nearest.clear,
                    bool(landing.moved[b]),
                    bool(intervened[b]) if len(intervened) else bool(landing.moved[b]),
                )
            )
        return landing.sample

    def _record(self, step: Step, shift: Shift | None) -> None:
        count = len(step.x0)
        if shift is None:
            none = torch.zeros(count)
            active, delta, ratio = none.long(), none, none
        else:
            # score = (alpha x0 - x_t) / sigma^2 and its shift alpha delta / sigma^2
            active, delta = shift.active, vector_norm(shift.delta, dim=1)
            ratio = step.alpha * delta / vector_norm(step.noise, dim=1).clamp(min=1e-30)
        self.trace.records.append(
            Record(
                self.generation, self.calls, step.timestep, step.noise_level, active, delta, ratio
            )
        )


def _warn_far(landing: Landing) -> None:
    """Tell of pictures that are clear, but hardly what the model made."""
    lengths = landing.length.tolist()
    far = [b for b, nearest in enumerate(landing.nearest) if lengths[b] > FAR * nearest.radius > 0]
    if far:
        warnings.warn(
            f"{len(far)} of {len(landing.nearest)} finished images had to be moved by a whole "
            f"radius (up to {float(landing.length.max()):.4g}) to be clear, so little of "
            "them is left: use a smaller radius or fewer images at once.",
            ShieldedWarning,
            stacklevel=5,
        )


def flat(x: Tensor) -> Tensor:
    """(B, ...) as (B, D) float64, the precision that decides."""
    return exact(x).flatten(1)


def finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite: one of them makes the sum so."""
    wide = torch.promote_types(x.dtype, torch.float32)  # a sum in 16 bits may overflow
    return math.isfinite(x.sum(dtype=wide).item())


def moved(x: Tensor, delta: Tensor, rows: Tensor, scale: float = 1.0) -> Tensor:
    """x + scale delta in `rows`, those that delta (B, D) touches; the others keep their bits."""
    wide = torch.promote_types(x.dtype, torch.float32)  # 16 bits are rounded once, at the end
    if len(rows) == len(x):
        return (x + (scale * delta).to(wide).to(x.device).reshape(x.shape)).to(x.dtype)
    shift = (scale * delta[rows]).to(wide).to(x.device).reshape(-1, *x.shape[1:])
    rows = rows.to(x.device)
    return x.index_copy(0, rows, (x[rows] + shift).to(x.dtype))


def expand(groups: Sequence[Hashable] | None, count: int) -> tuple[Hashable, ...]:
    """One key an image: as given, or each prompt's key for its images, which follow one another."""
    if groups is None:
        return (None,) * count
    if isinstance(groups, str) or not len(groups) or count % len(groups):
        raise ShapeMismatch(
            f"{len(groups)} groups for a batch of {count} images: give one key an image, or one a "
            "prompt."
        )
    return tuple(key for key in groups for _ in range(count // len(groups)))
