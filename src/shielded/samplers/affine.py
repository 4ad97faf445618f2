# SPDX-License-Identifier: Apache-2.0
"""The table: for every scheduler, x0 = a x_t + b out at the call that `step` is about to make.

x_t = alpha x0 + sigma eps, `out` is what the model predicts. A shift of x0 by delta is therefore
exactly a shift of `out` by delta / b, and the solver, its history and its noise never know.
Schedulers are told by the names of their classes, so that this file needs no diffusers.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, sin, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shielded.errors import UnsupportedScheduler

__all__ = ["Affine", "affine", "check", "clipped", "finished"]


class Affine(NamedTuple):
    """x_t = alpha x0 + sigma eps and x0 = a x_t + b out."""

    alpha: float
    sigma: float
    a: float
    b: float


Rule = Callable[[Any, Any], Affine]


def affine(scheduler: Any, timestep: Any) -> Affine:
    """The coefficients of the coming call of `scheduler.step(out, timestep, x_t)`."""
    return _rule(scheduler)(scheduler, timestep)


def check(scheduler: Any) -> None:
    """Raise UnsupportedScheduler, with the reason, for what the table does not hold."""
    _rule(scheduler)
    kind = _prediction(scheduler)
    if kind not in (*_VARIANCE_PRESERVING, "original_sample", "trigflow"):
        raise UnsupportedScheduler(
            f"{type(scheduler).__name__} predicts {kind!r}, which is no known prediction_type: use "
            "epsilon, v_prediction, sample or flow_prediction."
        )
    if getattr(scheduler, "_scale_factors", None):
        raise UnsupportedScheduler(
            f"{type(scheduler).__name__} changes the size of the latents while sampling: set its "
            "scale_factors to None."
        )


def clipped(scheduler: Any, x0: Tensor) -> Tensor:
    """x0 (B, ...) as `step` itself will clip or threshold it."""
    config = scheduler.config
    if config.get("thresholding") and hasattr(scheduler, "_threshold_sample"):
        return scheduler._threshold_sample(x0)
    if config.get("clip_denoised"):
        return x0.clamp(-1, 1)
    if config.get("clip_sample") and _known(scheduler, _CLIPS):
        return x0.clamp(-config.clip_sample_range, config.clip_sample_range)
    return x0


def finished(scheduler: Any, timestep: Any) -> bool:
    """Whether the call of `step` at `timestep`, just made, was the last of the schedule."""
    if _known(scheduler, {"PNDMScheduler"}):  # its second call repeats the first step
        return float(timestep) == float(scheduler.timesteps[-1]) and scheduler.counter != 2
    index = getattr(scheduler, "step_index", None)
    if index is None:
        index = getattr(scheduler, "_step_index", None)
    if index is None or _known(scheduler, {"LTXEulerAncestralRFScheduler"}):
        return float(timestep) == float(scheduler.timesteps[-1])
    end = 1 if _known(scheduler, {"SCMScheduler"}) else 0  # its timesteps also hold the end, 0
    return index >= len(scheduler.timesteps) - end


# x_t = sqrt(abar) x0 + sqrt(1 - abar) eps, with abar looked up by timestep


def _by_timestep(scheduler: Any, timestep: Any) -> Affine:
    abar = float(scheduler.alphas_cumprod[timestep])
    return _preserving(scheduler, sqrt(abar), sqrt(1 - abar))


def _consistency_by_timestep(scheduler: Any, timestep: Any) -> Affine:
    """LCM: what is denoised, and noised again, is c_out x0 + c_skip x_t."""
    alpha, sigma, a, b = _by_timestep(scheduler, timestep)
    scalings = scheduler.get_scalings_for_boundary_condition_discrete(timestep)
    c_skip, c_out = (float(c) for c in scalings)
    return Affine(alpha, sigma, c_out * a + c_skip, c_out * b)


# the same family, or flow matching, with sigmas by step index


def _by_sigma(scheduler: Any, timestep: Any) -> Affine:
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(_sigma(scheduler, timestep))
    return _preserving(scheduler, float(alpha), float(sigma))


_VARIANCE_PRESERVING: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "epsilon": lambda alpha, sigma: (1 / alpha, -sigma / alpha),
    "v_prediction": lambda alpha, sigma: (alpha, -sigma),
    "sample": lambda alpha, sigma: (0.0, 1.0),
    "flow_prediction": lambda alpha, sigma: (1.0, -sigma),
}


def _preserving(scheduler: Any, alpha: float, sigma: float) -> Affine:
    return Affine(alpha, sigma, *_VARIANCE_PRESERVING[_prediction(scheduler)](alpha, sigma))


# k-diffusion's frame: x_t = x0 + sigma eps


def _exploding(sigma_of: Callable[[Any, Any], Any]) -> Rule:
    def rule(scheduler: Any, timestep: Any) -> Affine:
        sigma = float(sigma_of(scheduler, timestep))
        kind = _prediction(scheduler)
        if kind == "epsilon":
            return Affine(1.0, sigma, 1.0, -sigma)
        if kind == "v_prediction":
            return Affine(1.0, sigma, 1 / (sigma**2 + 1), -sigma / sqrt(sigma**2 + 1))
        return Affine(1.0, sigma, 0.0, 1.0)

    return rule


def _sigma(scheduler: Any, timestep: Any) -> Any:
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)  # as `step` itself is about to do
    return scheduler.sigmas[scheduler.step_index]


def _second_order(middle: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """sigmas[i] in the first call of a step, `middle` in its second."""

    def sigma_of(scheduler: Any, timestep: Any) -> Any:
        sigma = _sigma(scheduler, timestep)
        return sigma if scheduler.state_in_first_order else middle(scheduler)

    return sigma_of


# flow matching: x_t = (1 - sigma) x0 + sigma eps, out = eps - x0


def _flow(scheduler: Any, timestep: Any) -> Affine:
    sigma = float(_sigma(scheduler, timestep))
    return Affine(1 - sigma, sigma, 1.0, -sigma)


def _flow_to_data(scheduler: Any, timestep: Any) -> Affine:
    """MiniMax: the timestep is 1 - sigma and the velocity points to the data."""
    t = float(timestep)
    return Affine(t, 1 - t, 1.0, 1 - t)


# preconditioned networks


def _edm(scheduler: Any, timestep: Any) -> Affine:
    sigma = _sigma(scheduler, timestep)
    one, zero = torch.ones(()), torch.zeros(())
    a = float(scheduler.precondition_outputs(one, zero, sigma))
    return Affine(1.0, float(sigma), a, float(scheduler.precondition_outputs(zero, one, sigma)))


def _trigflow(scheduler: Any, timestep: Any) -> Affine:
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    s = float(scheduler.timesteps[scheduler.step_index])
    return Affine(cos(s), sin(s), cos(s), -sin(s))


def _consistency_by_sigma(scheduler: Any, timestep: Any) -> Affine:
    sigma = _sigma(scheduler, timestep)
    c_skip, c_out = scheduler.get_scalings_for_boundary_condition(sigma)
    return Affine(1.0, float(sigma), float(c_skip), float(c_out))


RULES: dict[str, Rule] = {
    "DDPMScheduler": _by_timestep,
    "DDPMParallelScheduler": _by_timestep,
    "DDIMScheduler": _by_timestep,
    "DDIMParallelScheduler": _by_timestep,
    "PNDMScheduler": _by_timestep,
    "UnCLIPScheduler": _by_timestep,
    "CogVideoXDDIMScheduler": _by_timestep,
    "CogVideoXDPMScheduler": _by_timestep,
    "TCDScheduler": _by_timestep,
    "LCMScheduler": _consistency_by_timestep,
    "DPMSolverMultistepScheduler": _by_sigma,
    "DPMSolverSinglestepScheduler": _by_sigma,
    "DEISMultistepScheduler": _by_sigma,
    "UniPCMultistepScheduler": _by_sigma,
    "SASolverScheduler": _by_sigma,
    "EulerDiscreteScheduler": _exploding(_sigma),
    "EulerAncestralDiscreteScheduler": _exploding(_sigma),
    "LMSDiscreteScheduler": _exploding(_sigma),
    "HeunDiscreteScheduler": _exploding(_sigma),
    "KDPM2DiscreteScheduler": _exploding(
        _second_order(lambda scheduler: scheduler.sigmas_interpol[scheduler.step_index])
    ),
    "KDPM2AncestralDiscreteScheduler": _exploding(
        _second_order(lambda scheduler: scheduler.sigmas_interpol[scheduler.step_index - 1])
    ),
    "DPMSolverSDEScheduler": _exploding(_second_order(lambda scheduler: scheduler.mid_point_sigma)),
    "FlowMatchEulerDiscreteScheduler": _flow,
    "FlowMatchHeunDiscreteScheduler": _flow,
    "FlowMatchLCMScheduler": _flow,
    "LTXEulerAncestralRFScheduler": _flow,
    "MiniMaxH3Scheduler": _flow_to_data,
    "EDMEulerScheduler": _edm,
    "EDMDPMSolverMultistepScheduler": _edm,
    "CosineDPMSolverMultistepScheduler": _edm,
    "SCMScheduler": _trigflow,
    "CMStochasticIterativeScheduler": _consistency_by_sigma,
}

# The classes whose `step` obeys config.clip_sample; others only carry the setting.
_CLIPS = {
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "UnCLIPScheduler",
    "LCMScheduler",
    "HeunDiscreteScheduler",
}


def _rule(scheduler: Any) -> Rule:
    for cls in type(scheduler).__mro__:
        if cls.__name__ in RULES:
            return RULES[cls.__name__]
    name = type(scheduler).__name__
    other = "FlowMatchEulerDiscreteScheduler" if "Flow" in name else "DPMSolverMultistepScheduler"
    raise UnsupportedScheduler(
        f"{name} gives no expected output x0 that could be shielded: use another scheduler of the "
        f"same model, such as {other}."
    )


def _known(scheduler: Any, names: set[str]) -> bool:
    return any(cls.__name__ in names for cls in type(scheduler).__mro__)


def _prediction(scheduler: Any) -> str:
    return scheduler.config.get("prediction_type") or "flow_prediction"
