# SPDX-License-Identifier: Apache-2.0
"""Tensors derived from a set, kept beside it: whoever loses them makes them again."""

import json
import os
import shutil
import threading
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from shielded.errors import BadInput

FOLDER = "screen"


def keep(root: Path, name: str, tensors: Mapping[str, Tensor], note: Mapping[str, str]) -> bool:
    """Store tensors and a note under a name, whole or not at all; False if it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = _place(root, name)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    extra = {"note": json.dumps(dict(note)), "sum": _sum(tensors, note)}
    try:
        path.parent.mkdir(exist_ok=True)
        save_file(tensors, part, metadata=extra)
        part.replace(path)
    except (OSError, SafetensorError):
        with suppress(OSError):
            part.unlink()
        return False
    return True


def kept(root: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """What was stored under a name; None if it is missing or not as it was written."""
    from safetensors import SafetensorError, safe_open

    path = _place(root, name)
    try:
        with safe_open(path, "pt") as file:
            extra = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        note = json.loads(extra["note"])
        whole = extra["sum"] == _sum(tensors, note)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    return (tensors, note) if whole else None


def clear(root: Path) -> None:
    """Erase everything that was kept."""
    shutil.rmtree(root / FOLDER, ignore_errors=True)


def _place(root: Path, name: str) -> Path:
    if not name or Path(name).name != name:
        raise BadInput(f"{name!r} is not a plain file name.")
    return root / FOLDER / f"{name}.safetensors"


def _sum(tensors: Mapping[str, Tensor], note: Mapping[str, str]) -> str:
    """A CRC-32 of everything that is stored: enough against a disk, at the speed of memory."""
    value = zlib.crc32(json.dumps(dict(note), sort_keys=True).encode())
    for key, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
