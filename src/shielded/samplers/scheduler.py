# SPDX-License-Identifier: Apache-2.0
"""The trick: a transparent subclass of the pipeline's own scheduler, while a block lasts.

`scheduler.step(out, t, x_t)` is where x_t, t and the final prediction meet in almost every
diffusers pipeline. The scheduler object stays the same; only its class changes, to
one whose `step` moves the expected output and, after the last call, lands the returned latents.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shielded.errors import BadInput, NotShielded, ShieldedWarning, UnsupportedScheduler
from shielded.guidance import Step, exact, expand, moved
from shielded.samplers.affine import affine, check, clipped, finished

if TYPE_CHECKING:
    from shielded.guidance import Run

__all__ = ["installed"]

NEEDED = ("model_output", "timestep", "sample")  # what a call of `step` has to tell


@contextmanager
def installed(pipe: Any, run: Run) -> Iterator[None]:
    """Shield `pipe.scheduler` with the run's guidance; plain again on exit and on error."""
    scheduler = getattr(pipe, "scheduler", None)
    if not hasattr(scheduler, "step"):
        raise BadInput(f"{type(pipe).__name__} has no scheduler: pass a diffusers pipeline.")
    check(scheduler)
    plain = type(scheduler)
    twins = any(cls.__name__ == "DiTPipeline" for cls in type(pipe).__mro__)
    adapter = Adapter(run, plain, twins)
    scheduler.__class__ = adapter.subclass()
    try:
        yield
        if pipe.scheduler is not scheduler:
            raise NotShielded(
                "pipe.scheduler was replaced in the block, so what came after is not shielded: "
                "set the scheduler before the block."
            )
        if not run.total:
            raise NotShielded(
                f"no call of {plain.__name__}.step was seen in the block: generate in it; if "
                f"you did, {type(pipe).__name__} samples with a copy of its scheduler and cannot "
                "be shielded."
            )
        adapter.close()
    finally:
        scheduler.__class__ = plain


class Adapter:
    """Between one scheduler class and one run."""

    def __init__(self, run: Run, plain: type, twins: bool):
        self.run, self.plain, self.twins = run, plain, twins
        self.signature = inspect.signature(plain.step)
        self.names = list(self.signature.parameters)[1:]
        self.open = False  # a generation has begun and not finished

    def subclass(self) -> type:
        """A class that looks like the plain one, and whose `step` and `set_timesteps` tell us."""
        adapter, plain = self, self.plain

        @functools.wraps(plain.step)
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            return adapter.step(self, *args, **kwargs)

        @functools.wraps(plain.set_timesteps)
        def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
            adapter.close()
            return plain.set_timesteps(self, *args, **kwargs)

        def __reduce_ex__(self: Any, protocol: int) -> Any:
            # Copies and pickles are plain: a copy's images are its owner's, not this run's.
            return plain.__new__, (plain,), self.__dict__

        members = {
            "step": step,
            "set_timesteps": set_timesteps,
            "__reduce_ex__": __reduce_ex__,
            "__module__": plain.__module__,
            "__qualname__": plain.__qualname__,
            "__doc__": plain.__doc__,
        }
        return type(plain.__name__, (plain,), members)

    def step(self, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        """`plain.step`, with x0 moved before it and the returned latents landed after the last."""
        given = dict(zip(self.names, args, strict=False)) | kwargs
        if len(args) > len(self.names) or not {*NEEDED} <= given.keys():
            self.signature.bind(scheduler, *args, **kwargs)  # the plain one's TypeError, if any
            raise UnsupportedScheduler(
                f"{self.plain.__name__}.step does not take {', '.join(NEEDED)} by these names: "
                "such a scheduler cannot be shielded."
            )
        self._refuse(scheduler, given)
        timestep, x_t = _one(given["timestep"]), given["sample"]
        if not self.open:
            self.run.begin()
            self.open = True
        self._shift(scheduler, given, timestep, x_t)
        result = self.plain.step(scheduler, **given)  # type: ignore[attr-defined]
        if finished(scheduler, timestep):
            self.open = False
            result = self._land(result)
        return result

    def close(self) -> None:
        """A new schedule begins, or the block ends: was the last one run to its end?"""
        if self.open:
            self.open = False
            warnings.warn(
                "a generation stopped before the last timestep of its schedule: its images were "
                "guided, but not checked and not certified.",
                ShieldedWarning,
                stacklevel=4,
            )

    def _shift(self, scheduler: Any, arguments: dict[str, Any], timestep: Any, x_t: Tensor) -> None:
        name, out = "model_output", arguments["model_output"]
        alpha, sigma, a, b = affine(scheduler, timestep)
        if arguments.get("pred_original_sample") is not None:  # EDM Euler: x0 is given as it is
            name, out, a, b = "pred_original_sample", arguments["pred_original_sample"], 0.0, 1.0
        half = self._half(x_t, out)
        rows, channels = slice(half), slice(x_t.shape[1])  # beyond them: a twin, a learned variance
        head = out[rows, channels]
        raw = a * exact(x_t[rows])
        raw.add_(head.detach().to(raw.device), alpha=b)  # in float64, without a copy of it
        x0 = clipped(scheduler, raw)
        groups, box = expand(self.run.groups, len(x0)), self.run.space.box
        step = Step(x_t[rows], x0, alpha, sigma, groups, float(timestep), box)
        shift = self.run.shift(step)
        if shift is None or abs(b) < 1e-12:  # b = 0: this call's x0 is x_t itself; landing is left
            return
        delta = shift.delta if x0 is raw else shift.delta + (x0 - raw).flatten(1)
        head = moved(head, delta, shift.rows, 1 / b)
        if half != len(x_t):
            head = torch.cat([head, head])
        if head.shape != out.shape:
            head = torch.cat([head, out[:, x_t.shape[1] :]], 1)
        arguments[name] = head

    def _half(self, x_t: Tensor, out: Tensor) -> int:
        """How many images the batch holds: DiT passes each twice under guidance."""
        half = len(x_t) // 2
        twice = self.twins and len(x_t) % 2 == 0 and half > 0
        if twice and torch.equal(x_t[:half], x_t[half:]) and torch.equal(out[:half], out[half:]):
            return half
        return len(x_t)

    def _land(self, result: Any) -> Any:
        """Replace the returned latents, and the denoised ones where they are the same tensor."""
        sample = result[0] if isinstance(result, tuple) else result.prev_sample
        half = self._half(sample, sample)
        landed = self.run.finish(sample[:half])
        if half != len(sample):
            landed = torch.cat([landed, landed])
        if isinstance(result, tuple):
            return tuple(
                landed if isinstance(part, Tensor) and _same(part, sample) else part
                for part in result
            )
        for name in ("prev_sample", "pred_original_sample", "denoised"):
            part = getattr(result, name, None)
            if isinstance(part, Tensor) and _same(part, sample):
                setattr(result, name, landed)
        return result

    def _refuse(self, scheduler: Any, arguments: dict[str, Any]) -> None:
        if arguments.get("per_token_timesteps") is not None:
            raise UnsupportedScheduler(
                "per-token timesteps give every token its own noise level: such a call cannot be "
                "shielded."
            )
        if (
            arguments.get("s_churn")
            and "Euler" in self.plain.__name__
            and "Flow" not in self.plain.__name__
        ):
            raise UnsupportedScheduler(
                f"{self.plain.__name__} with s_churn adds noise before x0 is known: leave it at 0."
            )


def _one(timestep: Any) -> Any:
    """The timestep of the call, also where a pipeline passes one an image."""
    if not isinstance(timestep, Tensor) or timestep.numel() == 1:
        return timestep.reshape(()) if isinstance(timestep, Tensor) else timestep
    if bool((timestep != timestep.flatten()[0]).any()):
        raise UnsupportedScheduler(
            "the images of one call are at different timesteps: such a call cannot be shielded."
        )
    return timestep.flatten()[0]


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and torch.equal(a, b))
