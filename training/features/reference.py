# SPDX-License-Identifier: Apache-2.0
"""Features of real pictures, to hold made ones against where the pictures themselves are not.

    python training/features/reference.py --name fashion --data fashion_mnist.npz
    python training/features/reference.py --name sprites --data crawl_tiles_32.npz

writes src/shielded/metrics/weights/NAME/real.safetensors: float16 features of the feature network
of that name. Of fashion 200 pictures of each class of the test set, and 100 others of it for
choosing settings: no network has learned from either. Of sprites the pictures that tiny-sprites was
trained on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from shielded.bench.kit.training_set import trained
from shielded.metrics import SmallNet

ROOT = Path(__file__).parents[2] / "src" / "shielded" / "metrics" / "weights"
OF_EACH = {"test": slice(0, 200), "validation": slice(200, 300)}  # pictures of a class, shuffled


def fashion(data: Path, net: SmallNet) -> dict[str, Tensor]:
    """Features and labels of some pictures of each class; classes as the bytes of their names."""
    held: dict[str, Tensor] = {"classes": torch.tensor(list("\n".join(net.classes).encode()))}
    held["classes"] = held["classes"].to(torch.uint8)
    archive = np.load(data, allow_pickle=False)
    x, y = archive["x_test"], archive["y_test"]
    draw = np.random.default_rng(0)
    shuffled = [draw.permutation(np.flatnonzero(y == c)) for c in range(10)]
    for split, part in OF_EACH.items():
        some = np.concatenate([rows[part] for rows in shuffled])
        pictures = torch.from_numpy(x[some]).float()[:, None] / 127.5 - 1
        held[split] = net(pictures).to(torch.float16)
        held[f"{split}_labels"] = torch.from_numpy(y[some].astype(np.int64)).to(torch.uint8)
    return held


def sprites(data: Path, net: SmallNet) -> dict[str, Tensor]:
    """Features of all pictures that tiny-sprites was trained on; what they show is not told."""
    return {"test": net(trained(data).float() / 127.5 - 1).to(torch.float16)}


def main() -> None:
    """Write the file and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", choices=("fashion", "sprites"), required=True)
    parser.add_argument("--data", type=Path, required=True)
    asked = parser.parse_args()
    made = {"fashion": fashion, "sprites": sprites}[asked.name]
    held = made(asked.data, SmallNet(asked.name))
    path = ROOT / asked.name / "real.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, path)
    print(json.dumps({name: list(tensor.shape) for name, tensor in held.items()}))


if __name__ == "__main__":
    main()
