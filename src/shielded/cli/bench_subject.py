# SPDX-License-Identifier: Apache-2.0
"""From the words on the command line to what a bench measures."""

from pathlib import Path
from typing import Any

from shielded.errors import BadInput

EXTRACTORS = ("pixels", "dinov2", "clip", "inception", "smallnet", "resnet56")


def find_subject(
    model: str,
    real: Path | None = None,
    extractor: str | None = None,
    steps: int | None = None,
    split: str = "test",
    autocast: bool = False,
) -> Any:
    """A bundled model by its name, or any diffusers pipeline with its conditions and features.

    `real` is a JSON file {condition: [files of real images]}, `extractor` is NAME or NAME:PATH.
    """
    from shielded.bench.kit.subject import subject
    from shielded.models import available

    extract = None if extractor is None else find_extractor(extractor)
    if model in available():
        return subject(model, real, extract=extract, steps=steps, split=split, autocast=autocast)
    if real is None or extract is None:
        raise BadInput(
            f"{model} comes without conditions and features: give --real (a JSON file, condition "
            f"-> files of real images, which may be none) and --extractor "
            f"({', '.join(EXTRACTORS)}, with :PATH of its weights)."
        )
    from shielded.cli.load import load_pipe

    pipe, _ = load_pipe(model, None, None, None)
    pipe.set_progress_bar_config(disable=True)
    return subject(
        Path(model).name, real, pipe=pipe, extract=extract, steps=steps, autocast=autocast
    )


def find_extractor(spec: str) -> Any:
    """A feature extractor by NAME or NAME:PATH."""
    from shielded import metrics

    name, _, path = spec.partition(":")
    made: dict[str, Any] = {
        "pixels": metrics.Pixels,
        "dinov2": metrics.DINOv2,
        "clip": metrics.CLIP,
        "inception": metrics.Inception,
        "smallnet": metrics.SmallNet,
        "resnet56": metrics.ResNet56,
    }
    if name not in made:
        raise BadInput(f"{name} is no feature extractor: choose one of {', '.join(EXTRACTORS)}.")
    if name == "resnet56" and not path:
        raise BadInput("resnet56 needs its weights: --extractor resnet56:FILE.safetensors.")
    return made[name](path) if path else made[name]()
