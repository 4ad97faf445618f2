# SPDX-License-Identifier: Apache-2.0
"""How many samples of a model are (almost) training tiles.

    python copies.py --model FOLDER --data crawl_tiles_32.npz

For each prompt and seed: the least distance |sample - tile| (Euclidean, pixels in [-1, 1], over
mirror images and shifts of up to 2 pixels) to any training tile, its hue turned or not.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from batches import ANY_COLOUR, TURNS
from data import hue_turned, load_tiles

from shielded.models.text_to_image import TinyTextToImagePipeline


def references(path: Path) -> torch.Tensor:
    """Every training picture, (N, 3072) in [-1, 1], hue turned where training turns it."""
    tiles = load_tiles(path)
    pictures = [t.pixels for t in tiles]
    pictures += [hue_turned(t.pixels, k) for t in tiles if t.noun in ANY_COLOUR for k in TURNS]
    return torch.from_numpy(np.stack(pictures)).flatten(1).float() / 127.5 - 1


def nearest(samples: np.ndarray, pictures: torch.Tensor) -> np.ndarray:
    """The least distance of each sample (B, 32, 32, 3) uint8 to the pictures."""
    best = torch.full((len(samples),), float("inf"))
    for mirrored in (samples, samples[:, :, ::-1]):
        for down in range(-2, 3):
            for right in range(-2, 3):
                moved = np.roll(mirrored, (down, right), (1, 2))
                x = torch.from_numpy(moved.copy()).flatten(1).float() / 127.5 - 1
                best = torch.minimum(best, torch.cdist(x, pictures).amin(1))
    return best.numpy()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args()
    prompts = json.loads((options.model / "prompts.json").read_text())["bench"]
    pipe = TinyTextToImagePipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    samples = []
    for prompt in prompts:
        seeds = [torch.Generator().manual_seed(i) for i in range(options.seeds)]
        images = pipe(prompt, num_images_per_prompt=options.seeds, generator=seeds).images
        samples.extend(np.array(i) for i in images)
    found = nearest(np.stack(samples), references(options.data)).reshape(len(prompts), -1)
    for prompt, near in zip(prompts, found, strict=True):
        print(f"{prompt:16s} " + " ".join(f"{d:5.1f}" for d in near))
    for bound in (5, 10, 15, 20):
        print(f"nearest tile within {bound}: {np.mean(found < bound):.1%}")
    print(f"median distance to the nearest tile: {np.median(found):.1f}")


if __name__ == "__main__":
    main()
