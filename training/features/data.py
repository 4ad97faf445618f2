# SPDX-License-Identifier: Apache-2.0
"""The pictures and classes that the feature networks are trained on."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FASHION = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
RELEASES = ("releases", "Ancient", "Oct-5-2010", "Nov-2015", "UNUSED")
MOVED = {  # folders that one release puts elsewhere
    "weapons": ["item", "weapon"], "rings": ["item", "ring"], "potions": ["item", "potion"],
    "books": ["item", "book"], "armour": ["item", "armour"], "food": ["item", "food"],
    "spells": ["gui", "spells"], "monsters": ["mon"], "features": ["dngn"],
    "floor": ["dngn", "floor"],
}  # fmt: skip
AT_LEAST = 20  # tiles that a folder must hold to be a class of its own


class Split(NamedTuple):
    """Pictures (N, C, H, W) in [-1, 1] and classes (N,) to learn from, and others to test with."""

    x: Tensor
    y: Tensor
    x_held: Tensor
    y_held: Tensor
    classes: list[str]


def load(name: str, path: str | Path) -> Split:
    """The split of "sprites" or "fashion" from its archive."""
    return {"sprites": sprites, "fashion": fashion}[name](path)


def fashion(path: str | Path) -> Split:
    """Fashion-MNIST with its own test set."""
    a = np.load(path, allow_pickle=False)
    x, held = (torch.from_numpy(a[k]).float()[:, None] / 127.5 - 1 for k in ("x_train", "x_test"))
    y, y_held = (torch.from_numpy(a[k]).long() for k in ("y_train", "y_test"))
    return Split(x, y, held, y_held, list(FASHION))


def sprites(path: str | Path) -> Split:
    """The tiles on white, classes from folders; a tenth of the file names is held out.

    Both releases of a tile have one file name, so they are on the same side.
    """
    a = np.load(path, allow_pickle=False)
    rgba = torch.from_numpy(a["rgba"]).permute(0, 3, 1, 2).float() / 255
    x = (rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]) * 2 - 1
    paths = [str(p) for p in a["path"]]
    names = categories(paths)
    classes = sorted(set(names))
    y = torch.tensor([classes.index(n) for n in names])
    files = sorted({_file(p) for p in paths})
    chosen = np.random.default_rng(0).permutation(len(files))[: len(files) // 10]
    out = {files[i] for i in chosen}
    held = torch.tensor([_file(p) in out for p in paths])
    return Split(x[~held], y[~held], x[held], y[held], classes)


def categories(paths: list[str]) -> list[str]:
    """For each path its folder to the second level, or to the first where that holds too few."""
    fine = [_folder(p, 2) for p in paths]
    count = Counter(fine)
    found = [f if count[f] >= AT_LEAST else _folder(p, 1) for f, p in zip(fine, paths, strict=True)]
    count = Counter(found)
    return [f if count[f] >= AT_LEAST else "other" for f in found]


def _folder(path: str, levels: int) -> str:
    parts = [p.removeprefix("dc-") for p in path.split("/")[:-1] if p not in RELEASES]
    parts = MOVED.get(parts[0], [parts[0]]) + parts[1:] if parts else ["other"]
    return "/".join(parts[:levels])


def _file(path: str) -> str:
    return re.sub(r"(_old|_new)?\.png$", "", path.split("/")[-1])
