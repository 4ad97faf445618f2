# SPDX-License-Identifier: Apache-2.0
"""Calling a pipeline: one generator a seed, images as arrays, batches of a given size."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from shielded.errors import BadInput, NonFinite


@dataclass(frozen=True)
class Batch:
    """Images of one prompt that are made together; `first` counts over the whole run."""

    prompt: str
    first: int
    seeds: tuple[int, ...]


def batches(prompts: Sequence[str], count: int, seed: int, size: int) -> list[Batch]:
    """All batches of a run: `count` seeds for each prompt, at most `size` images together."""
    return [
        Batch(prompt, order * count + start, tuple(range(seed + start, seed + stop)))
        for order, prompt in enumerate(prompts)
        for start in range(0, count, size)
        for stop in [min(count, start + size)]
    ]


def call_options(pipe: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, or BadInput for one that this pipeline does not take."""
    given = {name: value for name, value in options.items() if value is not None}
    known = _parameters(pipe)
    if "prompt" not in known:
        raise BadInput(
            f"{type(pipe).__name__} takes no prompt: choose a text-to-image model with --model."
        )
    if "num_frames" in known or "audio_length_in_s" in known:
        raise BadInput(
            f"{type(pipe).__name__} makes no still images: use the Python API, spell.on(pipe)."
        )
    for name in given:
        if name not in known:
            option = "--steps" if name == "num_inference_steps" else "--" + name.replace("_", "-")
            raise BadInput(f"{type(pipe).__name__} has no such setting: leave {option} out.")
    return given


def sample(pipe: Any, batch: Batch, options: dict[str, Any]) -> np.ndarray:
    """The images of a batch (B, H, W, C), float in [0, 1], each from the noise of its own seed."""
    import torch

    count = len(batch.seeds)
    # CPU generators, so that a seed means the same image on every device.
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in batch.seeds]
    if "num_images_per_prompt" in _parameters(pipe):
        prompts = {"prompt": batch.prompt, "num_images_per_prompt": count}
    else:
        prompts = {"prompt": [batch.prompt] * count}
    output = pipe(**prompts, generator=generators, output_type="np", **options)
    images = getattr(output, "images", None)
    if images is None:
        raise BadInput(
            f"{type(pipe).__name__} makes no still images: use the Python API, spell.on(pipe)."
        )
    images = np.asarray(images)
    if len(images) != count or images.ndim != 4:
        raise BadInput(
            f"{type(pipe).__name__} returned images of shape {images.shape} for {count} seeds: "
            "choose a text-to-image model."
        )
    if not np.isfinite(images).all():
        raise NonFinite("The model returned NaN or infinity: try --dtype float32.")
    return images


def to_images(arrays: np.ndarray) -> Iterator[Image.Image]:
    """Arrays (B, H, W, C) in [0, 1] as the 8-bit images that are saved."""
    for pixels in (np.clip(arrays, 0, 1) * 255).round().astype(np.uint8):
        yield Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _parameters(pipe: Any) -> set[str]:
    return set(inspect.signature(type(pipe).__call__).parameters)
