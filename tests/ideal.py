# SPDX-License-Identifier: Apache-2.0
"""Schedulers without a network: the exact denoiser of a finite data set, and a sampling loop.

With data y_1..y_N, E[x0 | x_t] = sum_n softmax_n(-|x_t - alpha y_n|^2 / 2 sigma^2) y_n.
"""

from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor

from shielded.samplers.affine import affine

E, V, X, F = "epsilon", "v_prediction", "sample", "flow_prediction"
FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0}
RAW = {"clip_sample": False}


@dataclass(frozen=True)
class Case:
    """A scheduler class, a prediction type and the settings that make it usable here."""

    cls: str
    kind: str | None
    config: dict[str, Any] = field(default_factory=dict)
    lands: float = 1e-4  # how far from a forced x0 the returned sample may stay

    @property
    def name(self) -> str:
        extra = "-".join(str(v) for v in self.config.values() if isinstance(v, str))
        flag = "flow" if self.config.get("use_flow_sigmas") else ""
        parts = (self.cls.removesuffix("Scheduler"), self.kind or "", extra, flag)
        return "-".join(part for part in parts if part)

    def make(self) -> Any:
        kind = {} if self.kind is None else {"prediction_type": self.kind}
        return getattr(diffusers, self.cls)(**kind, **self.config)


def _cases() -> list[Case]:
    rows: list[tuple[str, list[str | None], dict[str, Any], float]] = [
        ("DDPMScheduler", [E, V, X], RAW, 1e-4),
        ("DDPMParallelScheduler", [E, V, X], RAW, 1e-4),
        ("DDIMScheduler", [E, V, X], RAW, 1e-4),
        ("DDIMScheduler", [E], {**RAW, "set_alpha_to_one": False, "steps_offset": 1}, 0.5),
        ("DDIMParallelScheduler", [E, V, X], RAW, 1e-4),
        ("PNDMScheduler", [E, V], {"skip_prk_steps": True}, 0.5),
        ("PNDMScheduler", [E], {"skip_prk_steps": False}, 0.5),
        ("UnCLIPScheduler", [E, X], RAW, 1e-3),
        ("CogVideoXDDIMScheduler", [E, V, X], {}, 1e-4),
        ("CogVideoXDPMScheduler", [E, V, X], {}, 1e-4),
        ("LCMScheduler", [E, V, X], {}, 1e-4),
        ("TCDScheduler", [E, V, X], {}, 0.5),
        ("EulerDiscreteScheduler", [E, V, X], {}, 1e-4),
        ("EulerDiscreteScheduler", [E], {"use_karras_sigmas": True}, 1e-4),
        ("EulerAncestralDiscreteScheduler", [E, V], {}, 1e-4),
        ("HeunDiscreteScheduler", [E, V, X], {}, 1e-4),
        ("KDPM2DiscreteScheduler", [E, V], {}, 1e-4),
        ("KDPM2AncestralDiscreteScheduler", [E, V], {}, 1e-4),
        ("LMSDiscreteScheduler", [E, V, X], {}, 1e-2),
        ("DPMSolverSDEScheduler", [E, V], {}, 1e-4),
        ("DPMSolverMultistepScheduler", [E, V, X], {}, 1e-3),
        ("DPMSolverMultistepScheduler", [F, E], FLOW, 1e-3),
        ("DPMSolverMultistepScheduler", [E], {"algorithm_type": "sde-dpmsolver++"}, 1e-3),
        (
            "DPMSolverMultistepScheduler",
            [E],
            {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
            0.5,
        ),
        ("DPMSolverSinglestepScheduler", [E, V, X], {}, 1e-3),
        ("DPMSolverSinglestepScheduler", [F], FLOW, 1e-3),
        ("DEISMultistepScheduler", [E, V, X], {}, 0.5),
        ("DEISMultistepScheduler", [F], FLOW, 5.0),
        ("UniPCMultistepScheduler", [E, V, X], {}, 1e-3),
        ("UniPCMultistepScheduler", [F], FLOW, 1e-3),
        ("SASolverScheduler", [E, V, X], {}, 0.5),
        ("SASolverScheduler", [F], FLOW, 5.0),
        ("FlowMatchEulerDiscreteScheduler", [None], {"shift": 3.0}, 1e-4),
        ("FlowMatchEulerDiscreteScheduler", [None], {"stochastic_sampling": True}, 1e-4),
        ("FlowMatchHeunDiscreteScheduler", [None], {}, 1e-4),
        ("FlowMatchLCMScheduler", [None], {}, 1e-4),
        ("LTXEulerAncestralRFScheduler", [None], {}, 1e-4),
        ("EDMEulerScheduler", [E, V], {}, 1e-4),
        ("EDMDPMSolverMultistepScheduler", [E, V], {}, 1e-3),
        ("CosineDPMSolverMultistepScheduler", [E, V], {}, 1e-3),
        ("SCMScheduler", ["trigflow"], {}, 1e-4),
        ("CMStochasticIterativeScheduler", [None], {"clip_denoised": False}, 1e-3),
        ("MiniMaxH3Scheduler", [None], {}, 1e-4),
    ]
    return [Case(cls, kind, config, lands) for cls, kinds, config, lands in rows for kind in kinds]


CASES = _cases()


class Pipe:
    """The least that `on` needs."""

    def __init__(self, scheduler: Any):
        self.scheduler = scheduler


def ideal(data: Tensor):
    """denoise(x_t, alpha, sigma) -> E[x0 | x_t] for data (N, D), in float64."""

    def denoise(x: Tensor, alpha: float, sigma: float) -> Tensor:
        y, flat = data.double(), x.double().flatten(1)
        if sigma == 0:
            return x
        logits = -torch.cdist(flat, alpha * y).square() / (2 * sigma**2)
        return (logits.softmax(1) @ y).reshape(x.shape)

    return denoise


def timesteps(scheduler: Any) -> Tensor:
    return scheduler.timesteps[:-1] if "SCM" in type(scheduler).__name__ else scheduler.timesteps


def sample(
    scheduler: Any,
    denoise: Any,
    shape: tuple[int, ...],
    seed: int = 0,
    steps: int = 8,
    dtype: torch.dtype = torch.float32,
    watch: Any = None,
) -> Tensor:
    """Run one generation as a pipeline does; the model's output realises `denoise` exactly."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # for schedulers that take no generator
    _set_timesteps(scheduler, steps)
    x = torch.randn(shape, generator=generator) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    x, old, previous = x.to(dtype), None, None
    times = timesteps(scheduler)
    for t in times:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        alpha, sigma, a, b = affine(scheduler, t)
        x0 = denoise(x, alpha, sigma)
        out = ((x0 - a * x.double()) / b if abs(b) > 1e-12 else torch.zeros_like(x0)).to(dtype)
        if watch is not None:
            watch(t, x, out)
        if "CogVideoXDPM" in type(scheduler).__name__:
            x, old = scheduler.step(out, old, t, previous, x, generator=generator)
        elif _takes_generator(scheduler):
            x = scheduler.step(out, t, x, generator=generator, return_dict=False)[0]
        else:
            x = scheduler.step(out, t, x, return_dict=False)[0]
        x, previous = x.to(dtype), t
    return x


def _takes_generator(scheduler: Any) -> bool:
    import inspect

    return "generator" in inspect.signature(scheduler.step).parameters


def _set_timesteps(scheduler: Any, steps: int) -> None:
    name = type(scheduler).__name__
    if name == "PNDMScheduler" and not scheduler.config.skip_prk_steps:
        steps = max(steps, 8)
    if name == "LTXEulerAncestralRFScheduler":
        scheduler.set_timesteps(sigmas=torch.linspace(1, 0, steps + 1).tolist())
    elif name == "SCMScheduler":
        scheduler.set_timesteps(steps, intermediate_timesteps=None)
    else:
        scheduler.set_timesteps(steps)
