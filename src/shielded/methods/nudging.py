# SPDX-License-Identifier: Apache-2.0
"""Embedding nudging (Zand and Nasr 2024, arXiv 2408.15450)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from shielded.checks import check_weight, check_window
from shielded.errors import BadInput, NonFinite, NotApplicable, ShapeMismatch
from shielded.guidance import Shift, Step, flat
from shielded.methods.filters import Check
from shielded.methods.method import Method
from shielded.methods.nudging_run import NudgingRun
from shielded.samplers.call import called
from shielded.samplers.denoiser import Denoiser
from shielded.spaces.semantic import Semantic

__all__ = ["EmbeddingNudging"]

FLOOR = 1e-5  # a cosine that changes by less, for a move of root mean square 1, is rounding


class EmbeddingNudging(Method):
    """x0 goes towards wanted embeddings and away from unwanted ones, and stays near where it was.

    Gradient descent from L = L0, the expected output of this sampling call, on

        J(L) = -alpha mean_w cos(u(L), w) + beta mean_v cos(u(L), v) + gamma |L - L0| / sqrt(D),

    over wanted w and unwanted v, u(L) the features of L: the paper's objective, with its products
    as cosines and its distance as a root mean square. Steps are normalised: each of `iterations`
    moves L by `rate` in root mean square, whatever the length of the gradient. At L0 the last
    term has a cone: where gamma outweighs the cosines' slope, L0 is the minimum, and L stays.

    With `filters` whole calls of the pipeline are made as the paper's loop: generate plainly; the
    filters look at the finished pictures; images that pass are returned as they are, bit for bit;
    those that fail are made again from the same noise and nudged, with twice the rate at each
    further try. What no try has cleared is withheld: grey, with a ShieldedWarning. Without
    filters every image is nudged.

    Args:
        wanted, unwanted: features (N, F) of `space`, as `encode(pipe, images, space=space)` makes
            them, or latents (N, ...) where `space` is None.
        alpha, beta, gamma: weights of the three terms; alpha = beta = 0 leaves every bit alone.
        iterations, rate: of the descent at each sampling call.
        window: (start, stop) noise levels sigma / (alpha + sigma) between which x0 is moved.
        space: a `shielded.spaces.Semantic`; None is the flattened latent itself.
        filters: of `shielded.methods.filters`, or callables `picture (C, H, W) -> bool`. One with
            this very `space` names references, which its images then keep away from, too.
        tries: how often images that failed are made again, at most; 0 only withholds.

    Raises:
        BadInput: for values that cannot be used, and for embeddings without a direction.
        NotApplicable: with filters, by `denoiser` and `correct`.

    Example:
        >>> EmbeddingNudging(unwanted=torch.ones(1, 3), alpha=0.0)
        EmbeddingNudging(alpha=0.0, beta=1.0, gamma=0.1, iterations=5, rate=0.01)
    """

    def __init__(
        self,
        wanted: Tensor | None = None,
        unwanted: Tensor | None = None,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 0.1,
        iterations: int = 5,
        rate: float = 0.01,
        window: tuple[float, float] = (0.95, 0.1),
        space: Semantic | None = None,
        filters: Sequence[Check] = (),
        tries: int = 4,
    ):
        self.alpha, self.beta = check_weight("alpha", alpha), check_weight("beta", beta)
        self.gamma, self.rate = check_weight("gamma", gamma), check_weight("rate", rate)
        if iterations < 1 or tries < 0:
            raise BadInput("iterations must be 1 or more, and tries 0 or more.")
        if not (space is None or isinstance(space, Semantic)):
            raise BadInput(f"space is {space!r}: give a shielded.spaces.Semantic, or None.")
        self.iterations, self.tries = int(iterations), int(tries)
        self.window, self.space = check_window(window), space
        self.filters = tuple(filters)
        self.wanted = None if wanted is None else _units("wanted", wanted)
        self.unwanted = None if unwanted is None else _units("unwanted", unwanted)
        if wanted is None and unwanted is None and not any(map(self.names, self.filters)):
            raise BadInput("there is nothing to go towards or away from: give wanted or unwanted.")
        self.idle: list[int] = []  # images without a usable gradient at the last sampling call

    def prepare(self, pipe: Any) -> None:
        """Let the filters know the pipeline."""
        for one in self.filters:
            if hasattr(one, "prepare"):
                one.prepare(pipe)  # type: ignore[attr-defined]

    def start(self, pipe: Any, groups: Sequence[Hashable] | None) -> NudgingRun:
        """The run of a block."""
        return NudgingRun(self, pipe, groups)

    @contextmanager
    def on(self, pipe: Any, groups: Sequence[Hashable] | None = None) -> Iterator[NudgingRun]:
        """Nudge every image made in the block; with filters only those that fail, call by call.

        The run's `idle` tells where gradients were of no use, `nudged` how each image ended.
        """
        with super().on(pipe, groups) as run:
            assert isinstance(run, NudgingRun)
            if not self.filters:
                yield run
                return
            with called(pipe, run.call):
                yield run

    def denoiser(self, fn: Callable[..., Tensor], groups: Sequence[Hashable] | None = None) -> Any:
        """As `Guidance.denoiser`; its `run` also knows `idle`. Not with filters."""
        self._alone()
        return Denoiser(fn, NudgingRun(self, None, groups))

    def correct(
        self,
        x0: Tensor,
        groups: Sequence[Hashable] | None = None,
        noise_level: float | None = None,
    ) -> Tensor:
        """As `Guidance.correct`, in the middle of the window by default. Not with filters."""
        self._alone()
        level = sum(self.window) / 2 if noise_level is None else noise_level
        return super().correct(x0, groups, level)

    def shift(self, step: Step) -> Shift | None:
        """The move of all images of this call."""
        shift, self.idle = self.move(step, {b: self.aim() for b in range(len(step.x0))}, self.rate)
        return shift

    def move(
        self, step: Step, aims: dict[int, Tensor | None], rate: float
    ) -> tuple[Shift | None, list[int]]:
        """The move of some images, each with its own aim, and those left without a gradient."""
        start, stop = self.window
        rows = [b for b, aim in aims.items() if aim is not None]
        if not (rows and rate and start >= step.noise_level >= stop):
            return None, []
        x = flat(step.x0)
        aim = torch.stack([m for m in aims.values() if m is not None]).to(x.device)
        moved, idle = self.descend(x[rows], aim, rate, tuple(step.x0.shape[1:]))
        delta = torch.zeros_like(x)
        delta[rows] = moved
        active = (delta != 0).any(1).long()
        left = [b for b, still in zip(rows, idle.tolist(), strict=True) if still]
        return (Shift(delta, active) if bool(active.any()) else None), left

    def descend(
        self, x0: Tensor, aim: Tensor, rate: float, shape: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """L - L0 (B, D) from L0 = x0 (B, D), and who met a gradient that was of no use (B,)."""
        x, scale = x0.clone(), x0.shape[1] ** 0.5
        idle = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        least = FLOOR * vector_norm(aim, dim=1) / scale
        for _ in range(self.iterations):
            slope = -self._towards(x.reshape(-1, *shape), aim)
            size = vector_norm(slope, dim=1)
            idle |= ~(size.isfinite() & (size > least))
            way = steepest(slope, x - x0, self.gamma / scale)
            way = way / vector_norm(way, dim=1, keepdim=True).clamp(min=1e-300)
            x = torch.where(idle[:, None], x, x - rate * scale * way)
        return x - x0, idle

    def aim(self, away: Sequence[Tensor] = ()) -> Tensor | None:
        """m (F,): the objective's cosines are -<u / |u|, m>. None where there are none.

        `away` are further unwanted features (F,) of one image.
        """
        parts = []
        if self.wanted is not None and self.alpha:
            parts.append(self.alpha * self.wanted.mean(0))
        others = [v / vector_norm(v) for v in (one.double().cpu() for one in away) if v.any()]
        unwanted = [*([] if self.unwanted is None else self.unwanted), *others]
        if unwanted and self.beta:
            parts.append(-self.beta * torch.stack(unwanted).mean(0))
        return torch.stack(parts).sum(0) if parts else None

    def names(self, one: Check) -> bool:
        """Whether a filter names references in the space in which images are nudged."""
        return hasattr(one, "space") and one.space is self.space  # type: ignore[attr-defined]

    def _towards(self, x: Tensor, aim: Tensor) -> Tensor:
        """d<u / |u|, m> / dL (B, D)."""
        if isinstance(self.space, Semantic):
            return self.space.towards(x, aim)
        u = x.flatten(1)
        if u.shape != aim.shape:
            raise ShapeMismatch(
                f"wanted and unwanted have {aim.shape[1]} numbers, the sampler's latents "
                f"{u.shape[1]}: encode them with the same model and size, or give their space."
            )
        length = vector_norm(u, dim=1, keepdim=True)
        unit = u / length
        return (aim - (unit * aim).sum(1, keepdim=True) * unit) / length

    def _alone(self) -> None:
        if self.filters:
            raise NotApplicable("filters look at what a pipeline returns: use .on(pipe) with one.")

    def __repr__(self) -> str:
        return (
            f"EmbeddingNudging(alpha={self.alpha}, beta={self.beta}, gamma={self.gamma}, "
            f"iterations={self.iterations}, rate={self.rate})"
        )


def steepest(slope: Tensor, away: Tensor, weight: float) -> Tensor:
    """The gradient (B, D) of the whole objective, L - L0 = away; at L0 the shortest of its cone.

    The last term's gradient is weight * away / |away|; at L0 it is any vector no longer than
    weight, so what is left of the slope is what is longer.
    """
    length = vector_norm(away, dim=1, keepdim=True)
    size = vector_norm(slope, dim=1, keepdim=True)
    left = slope * (1 - weight / size.clamp(min=1e-300)).clamp(min=0)
    return torch.where(length > 0, slope + weight * away / length.clamp(min=1e-300), left)


def _units(name: str, features: Tensor) -> Tensor:
    """Features (N, ...) as directions (N, F) float64 on the CPU."""
    if not isinstance(features, Tensor) or features.ndim < 2 or not features.numel():
        raise BadInput(
            f"{name} must be features (N, F), one row an image: make them with "
            "encode(pipe, images, space=...)."
        )
    rows = features.detach().cpu().to(torch.float64).flatten(1)
    if not bool(rows.isfinite().all()):
        raise NonFinite(f"{name} holds NaN or infinity: encode those images again.")
    length = vector_norm(rows, dim=1, keepdim=True)
    if not bool((length > 0).all()):
        raise BadInput(f"{name} holds a row that is all 0, so without a direction: leave it out.")
    return rows / length
