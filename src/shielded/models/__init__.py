# SPDX-License-Identifier: Apache-2.0
"""The bundled models: folders in the format of diffusers, beside this file."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from shielded.errors import UnknownModel

if TYPE_CHECKING:
    import torch

    from shielded.models.class_to_image import TinyClassToImagePipeline
    from shielded.models.text_to_image import TinyTextToImagePipeline

_HERE = Path(__file__).parent
_FILES = {
    "TinyTextToImagePipeline": "shielded.models.text_to_image",
    "TinyClassToImagePipeline": "shielded.models.class_to_image",
}


def available() -> dict[str, Path]:
    """The bundled models: name -> folder."""
    return {f.parent.name: f.parent for f in sorted(_HERE.glob("*/model_index.json"))}


def load(
    name: str = "tiny-sprites",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TinyTextToImagePipeline | TinyClassToImagePipeline:
    """A bundled model as an ordinary diffusers pipeline, float32 on the CPU unless told otherwise.

    Raises `UnknownModel`, naming those there are. Nothing is fetched from a network.
    """
    folder = _folder(name)
    import torch

    kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    pipe = getattr(import_module(_FILES[kind]), kind).from_pretrained(
        folder, dtype=dtype or torch.float32, local_files_only=True, use_safetensors=True
    )
    return pipe.to(device) if device is not None else pipe


def prompts(name: str = "tiny-sprites") -> dict[str, list[str]]:
    """Prompts for a bundled model: "everyday" (10, for demos) and "bench" (for tables)."""
    return json.loads((_folder(name) / "prompts.json").read_text(encoding="utf-8"))


def _folder(name: str) -> Path:
    folder = available().get(name)
    if folder is None:
        known = ", ".join(available()) or "none"
        raise UnknownModel(f"No bundled model is called {name!r}; there are: {known}.")
    return folder
