# SPDX-License-Identifier: Apache-2.0
"""Frechet distance of samples to the test set, beside that of the training set, by guidance.

    python evaluate.py --model FOLDER --data fashion_mnist.npz --images 10000 --guidance 1 1.5 2

Features are those of `shielded.metrics.SmallNet("fashion")`, pictures of 8 bits, as many of each
class. Prints one line a guidance scale, with precision, recall, how sure the classifier is of the
class asked for, and the median distance |sample - training picture| to the nearest one (pixels in
[-1, 1]). The floor is the training set's Frechet distance, with as many pictures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from data import NAMES, load
from torch import Tensor

from shielded.metrics import (
    SmallNet,
    class_score,
    frechet,
    nearest_distances,
    precision_recall,
)
from shielded.models.class_to_image import TinyClassToImagePipeline
from shielded.spaces import Pixels

AT_ONCE = 250
COMPARED = 1000  # pictures whose nearest training picture is looked for


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1, 1.5, 2, 3])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", type=Path, help="file to which each line is added, as JSON")
    return parser.parse_args()


def blocks(total: int) -> Iterator[tuple[int, list[int]]]:
    """Seed and labels of each block: the classes in turn."""
    for start in range(0, total, AT_ONCE):
        stop = min(total, start + AT_ONCE)
        yield start, [k % len(NAMES) for k in range(start, stop)]


def drawn(pipe: Any, options: argparse.Namespace, scale: float) -> Tensor:
    """`options.images` samples (N, 1, 28, 28) as the user gets them, in [-1, 1]."""
    parts = []
    for seed, labels in blocks(options.images):
        latents = pipe(
            class_labels=labels,
            num_inference_steps=options.steps,
            guidance_scale=scale,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images
        parts.append(Pixels().measure(latents).float())
    return torch.cat(parts)


def to_nearest(pictures: Tensor, known: Tensor) -> float:
    """The median distance of pictures (N, 1, 28, 28) to the nearest of `known` (M, 1, 28, 28)."""
    return float(nearest_distances(pictures[:COMPARED].flatten(1), known.flatten(1)).median())


def main() -> None:
    """Measure."""
    options = parse()
    net = SmallNet("fashion")
    pipe = TinyClassToImagePipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    train, test = load(options.data, "train"), load(options.data, "test")
    known, held = (part.at(torch.arange(len(part)))[0] for part in (train, test))
    real, seen = net(held), net(known)
    floor = frechet(real, seen[: options.images])
    print(f"test set and {min(options.images, len(seen))} of the training set: {floor:.4f}")
    print(f"test set and all of the training set: {frechet(real, seen):.4f}")
    print(f"nearest training picture of a test picture: {to_nearest(held, known):.2f}", flush=True)
    asked = torch.tensor([k for _, labels in blocks(options.images) for k in labels])
    for scale in options.guidance:
        start = time.perf_counter()
        pictures = drawn(pipe, options, scale)
        made = net(pictures)
        distance = frechet(real, made)
        precision, recall = precision_recall(real, made)
        line = {
            "guidance": scale, "steps": options.steps, "images": len(made),
            "frechet": round(distance, 4), "of_floor": round(distance / floor, 2),
            "precision": round(precision, 4), "recall": round(recall, 4),
            "class_score": round(class_score(net.probabilities(pictures), asked), 4),
            "to_training": round(to_nearest(pictures, known), 2),
            "seconds": round(time.perf_counter() - start),
        }  # fmt: skip
        print(json.dumps(line), flush=True)
        if options.out is not None:
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
