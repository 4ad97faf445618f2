# SPDX-License-Identifier: Apache-2.0
"""From the words on the command line to a pipeline that is ready to run."""

import logging
from pathlib import Path
from typing import Any

from shielded.errors import BadInput, UnknownModel, UnsupportedScheduler

DTYPES = ("float32", "float16", "bfloat16")


def load_pipe(
    model: str, device: str | None, dtype: str | None, scheduler: str | None
) -> tuple[Any, str]:
    """The pipeline with its device, precision and scheduler set, and the device's name."""
    from shielded.samplers.affine import check

    device = pick_device(device)
    pipe = find_pipe(model, pick_dtype(dtype, device))
    try:
        pipe = pipe.to(device)
    except (AssertionError, RuntimeError) as error:
        raise BadInput(f"The device {device} cannot be used ({first_line(error)}).") from error
    if scheduler is not None:
        pipe.scheduler = other_scheduler(pipe.scheduler, scheduler)
    check(pipe.scheduler)
    return pipe, device


def pick_device(name: str | None) -> str:
    """The device asked for, else the best one here."""
    import torch

    if name is None:
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.device(name)
    except RuntimeError:
        raise BadInput(f"{name} is not a device: try cpu, cuda, cuda:1 or mps.") from None
    return name


def pick_dtype(name: str | None, device: str) -> Any:
    """The precision asked for, else float32 on the CPU and bfloat16 on an accelerator."""
    import torch

    if name is None:
        return torch.float32 if device == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise BadInput(f"{name} is not a precision: choose one of {', '.join(DTYPES)}.")
    return getattr(torch, name)


def find_pipe(model: str, dtype: Any) -> Any:
    """A bundled model by its name, else a diffusers pipeline from a folder or the hub."""
    from shielded.models import available, load

    bundled = available()
    if model in bundled:
        return load(model, dtype)
    local = Path(model).is_dir()
    if not local and ("/" not in model or model.startswith((".", "/", "~"))):
        raise UnknownModel(
            f"{model} is not a model: give a bundled name ({', '.join(bundled)}), a folder that "
            "save_pretrained wrote, or a hub id such as owner/name."
        )
    from diffusers import DiffusionPipeline

    try:
        # Weights in pickle files are refused: reading one can run code.
        return DiffusionPipeline.from_pretrained(model, dtype=dtype, use_safetensors=True)
    except Exception as error:  # diffusers, transformers and the hub each have their own kinds
        place = "the folder" if local else "the hub"
        raise UnknownModel(
            f"{model} could not be loaded from {place} as a diffusers pipeline "
            f"({first_line(error)}); bundled models are {', '.join(bundled)}."
        ) from error


def other_scheduler(current: Any, name: str) -> Any:
    """A scheduler of the class `name` with the settings of the pipeline's own."""
    import diffusers

    found = getattr(diffusers, name, None) or getattr(diffusers, f"{name}Scheduler", None)
    if found is None or not hasattr(found, "from_config"):
        raise UnsupportedScheduler(
            f"{name} is not a diffusers scheduler: give the name of a class such as DDIMScheduler."
        )
    if _is_flow(current) and not name.startswith("FlowMatch"):
        extra = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        import inspect

        if "use_flow_sigmas" not in inspect.signature(found.__init__).parameters:
            raise UnsupportedScheduler(
                f"{found.__name__} cannot sample a flow-matching model: try "
                "FlowMatchEulerDiscreteScheduler or DPMSolverMultistepScheduler."
            )
        return found.from_config(current.config, **extra)
    if found.__name__.startswith("FlowMatch") and not _is_flow(current):
        raise UnsupportedScheduler(
            f"{found.__name__} samples flow-matching models only, and this model is none: try "
            "DDIMScheduler or DPMSolverMultistepScheduler."
        )
    return found.from_config(current.config)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without its full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(". ")


def _is_flow(scheduler: Any) -> bool:
    flow = getattr(scheduler.config, "prediction_type", None) == "flow_prediction"
    return flow or type(scheduler).__name__.startswith("FlowMatch")


class Once(logging.Filter):
    """Lets a notice through once, though every batch gives it; unknown words are told here."""

    def __init__(self) -> None:
        super().__init__()
        self.told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show this record."""
        text = record.getMessage()
        new = text not in self.told and "does not know the word" not in text
        self.told.add(text)
        return new


def quiet() -> None:
    """Silence the bars and notices of the packages below: this command has its own."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for package in (diffusers_logging, transformers_logging):
        package.set_verbosity_error()
        package.disable_progress_bar()
    logging.getLogger("shielded.models").addFilter(Once())


def warn_unknown_words(pipe: Any, prompts: tuple[str, ...]) -> None:
    """Tell on stderr which words a bundled model has never seen, with the nearest it has."""
    from shielded.cli.guard import say

    if not hasattr(pipe, "unknown_words"):
        return
    for prompt in prompts:
        for word, nearest in pipe.unknown_words(prompt).items():
            hint = f"; words it knows: {', '.join(nearest)}" if nearest else ""
            say(f"The model has never seen the word {word}{hint}.")
