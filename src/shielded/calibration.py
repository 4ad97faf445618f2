# SPDX-License-Identifier: Apache-2.0
"""Choosing the radius (Appendix D): the distances between images of one unshielded batch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shielded.distances import squared_distances
from shielded.errors import BadInput
from shielded.guidance import Guidance, Shift, Step
from shielded.landing import Landing
from shielded.spaces.fingerprint import fingerprint
from shielded.spaces.semantic import Semantic
from shielded.spaces.space import Space, name_of

__all__ = ["Calibration", "calibrate"]

GRID = 16  # radii from 0 to twice the median distance, as the paper tests
DEFAULT_SHARE = 1.0  # of the median distance; docs/results shows what other shares do


@dataclass(frozen=True, slots=True)
class Calibration:
    """What one unshielded batch says about radii, in units of the space."""

    radius: float  # the default: the median
    median: float  # of all pairwise distances within a prompt
    grid: tuple[float, ...]  # 16 radii from 0 to 2 median
    distances: tuple[float, ...]  # all of them, ascending
    prompts: tuple[str, ...]
    num_images: int
    shape: tuple[int, ...]  # of one latent, or of its features
    model: str
    space: str = "latent"  # or what the embedding is called

    def to_dict(self) -> dict[str, Any]:
        """The calibration as JSON values."""
        return asdict(self)


class _Watch(Guidance):
    """Moves nothing and keeps what the pipeline returned."""

    def __init__(self, space: Semantic | None) -> None:
        self.space = space
        self.images: list[Tensor] = []

    def shift(self, step: Step) -> Shift | None:
        return None

    def land(self, sample: Tensor, space: Space, step: Step) -> Landing:
        measured = space.measure(sample)
        self.images.append(measured)
        return Landing(sample, measured, torch.zeros(len(sample)), [])


def calibrate(
    pipe: Any,
    prompt: str | Sequence[str] | None = None,
    num_images: int = 16,
    seed: int = 0,
    cache: bool = True,
    batch_size: int | None = None,
    space: Semantic | None = None,
    **call: Any,
) -> Calibration:
    """Generate `num_images` a prompt without shields and measure their pairwise L2 distances.

    Further keyword arguments go to the pipeline's call (num_inference_steps, guidance_scale,
    class_labels, ...); `batch_size` bounds the images made at once. With a semantic `space`
    distances are those of its features. The result is kept in the user's cache folder
    (SHIELDED_CACHE, or XDG_CACHE_HOME/shielded, or ~/.cache/shielded) under the model, its
    scheduler, the space, the prompts and the call; `cache=False` neither reads nor writes it, and
    nor does a space with a decoder of its own, which has no name. Raises BadInput for fewer than
    two images.

    Example:
        radius = calibrate(pipe, "a dog plays with a ball").radius
        spread = calibrate(pipe, "a dog plays with a ball", space=Semantic(Colour())).radius
    """
    if num_images < 2:
        raise BadInput(f"num_images is {num_images}: a distance needs two images at least.")
    prompts = [] if prompt is None else [prompt] if isinstance(prompt, str) else list(prompt)
    model = _fingerprint(pipe)
    settings = [model, prompts, num_images, seed, sorted((k, repr(v)) for k, v in call.items())]
    if space is not None:
        settings.append(_embedding(space, pipe, call))
        cache = cache and settings[-1] is not None
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
    file = _cache_folder() / f"calibration-{digest}.json"
    if cache and (found := _read(file)) is not None:
        return found
    size = min(batch_size or num_images, num_images)
    seeds = [range(seed, seed + num_images)[n : n + size] for n in range(0, num_images, size)]
    batches = [
        torch.cat([_generate(pipe, text, part, call, space) for part in seeds])
        for text in (prompts or [None])
    ]
    if min(len(batch) for batch in batches) < 2:
        raise BadInput(
            f"{type(pipe).__name__} returned fewer than two images: pass the argument that asks it "
            "for several (batch_size, class_labels, ...)."
        )
    distances = torch.cat([_pairs(batch) for batch in batches]).sort().values
    median = float(distances.median())
    if not median > 0:
        raise BadInput("all images of the batch are equal: calibrate with other seeds or settings.")
    result = Calibration(
        radius=DEFAULT_SHARE * median,
        median=median,
        grid=tuple(torch.linspace(0, 2 * median, GRID, dtype=torch.float64).tolist()),
        distances=tuple(distances.tolist()),
        prompts=tuple(prompts),
        num_images=num_images,
        shape=tuple(batches[0].shape[1:]),
        model=model,
        space=name_of(space),
    )
    if cache:
        _write(file, result)
    return result


def _generate(
    pipe: Any, prompt: str | None, seeds: range, call: dict[str, Any], space: Semantic | None
) -> Tensor:
    """(N, ...) finished images of one prompt as they are measured, one generator an image."""
    watch = _Watch(space)
    arguments: dict[str, Any] = {"generator": [torch.Generator().manual_seed(s) for s in seeds]}
    if prompt is not None:
        arguments["prompt"] = [prompt] * len(seeds)
    with watch.on(pipe):
        pipe(**(arguments | call))
    return torch.cat(watch.images)


def _pairs(images: Tensor) -> Tensor:
    x = images.flatten(1)
    upper = torch.ones(len(x), len(x), dtype=torch.bool, device=x.device).triu(1)
    return squared_distances(x, x)[upper].sqrt().cpu()


def _fingerprint(pipe: Any) -> str:
    """Class, configurations and a few weights of every component."""
    digest = hashlib.sha256(type(pipe).__name__.encode())
    for name, part in sorted(getattr(pipe, "components", {}).items()):
        digest.update(f"{name}:{type(part).__name__}".encode())
        config = getattr(part, "config", None)
        if config is not None:
            digest.update(
                repr(sorted((str(k), str(v)) for k, v in dict(_plain(config)).items())).encode()
            )
        if isinstance(part, torch.nn.Module):
            for key, weight in part.named_parameters():
                few = weight.detach().flatten()[:4].float().cpu().tolist()
                digest.update(f"{key}{tuple(weight.shape)}{few}".encode())
    return f"{type(pipe).__name__}-{digest.hexdigest()[:16]}"


def _embedding(space: Semantic, pipe: Any, call: dict[str, Any]) -> list[Any] | None:
    """What tells one space from another: its features of a test picture. None: not known."""
    if space.decoder is not None:
        return None
    try:
        facts = fingerprint(pipe, call.get("height"), call.get("width"), space=space)
    except BadInput:  # a pipeline that does not say how large its images are
        return None
    return [facts["embedding"], facts["shape"], [float(f"{u:.3g}") for u in facts["probe"]]]


def _plain(config: Any) -> dict[str, Any]:
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def _cache_folder() -> Path:
    if "SHIELDED_CACHE" in os.environ:
        return Path(os.environ["SHIELDED_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shielded"


def _read(file: Path) -> Calibration | None:
    try:
        values = json.loads(file.read_text())
        for name in ("grid", "distances", "prompts", "shape"):
            values[name] = tuple(values[name])
        return Calibration(**values)
    except (OSError, ValueError, TypeError, KeyError):
        return None  # not there, or not ours: measure again


def _write(file: Path, result: Calibration) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(result.to_dict()))
        part.replace(file)
    except OSError:
        pass  # a cache that cannot be written costs time, nothing else
