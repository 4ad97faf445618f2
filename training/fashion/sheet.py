# SPDX-License-Identifier: Apache-2.0
"""Draw a sheet of samples of a model folder, one row a class, to judge by eye.

python sheet.py --model FOLDER --out sheet.png --images 16 [--guidance 2]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from shielded.models.class_to_image import TinyClassToImagePipeline

LABEL = 90


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--zoom", type=int, default=2)
    options = parser.parse_args()
    pipe: Any = TinyClassToImagePipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    names, side = pipe.class_names, pipe.size * options.zoom
    canvas = Image.new("L", (LABEL + side * options.images, side * len(names)), 255)
    pen = ImageDraw.Draw(canvas)
    for y, name in enumerate(names):
        row = pipe(
            name,
            num_images_per_prompt=options.images,
            generator=[torch.Generator().manual_seed(i) for i in range(options.images)],
            guidance_scale=options.guidance,
            num_inference_steps=options.steps,
        ).images
        pen.text((4, y * side + side // 2 - 6), name, fill=0)
        for x, picture in enumerate(row):
            canvas.paste(picture.resize((side, side), 0), (LABEL + x * side, y * side))
    canvas.save(options.out)


if __name__ == "__main__":
    main()
