# SPDX-License-Identifier: Apache-2.0
"""Draw a sheet of samples of a model folder, one row a prompt, to judge by eye.

python sheet.py --model FOLDER --out sheet.png --images 16 [--guidance 3] "red potion" sword
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from shielded.models.text_to_image import TinyTextToImagePipeline

LABEL = 110


def rows(pipe, prompts: list[str], options) -> list[list[Image.Image]]:
    """`options.images` pictures of each prompt, seeds 0, 1, 2 ..."""
    result = []
    for prompt in prompts:
        seeds = [torch.Generator().manual_seed(i) for i in range(options.images)]
        result.append(
            pipe(
                prompt,
                num_images_per_prompt=options.images,
                generator=seeds,
                guidance_scale=options.guidance,
                num_inference_steps=options.steps,
            ).images
        )
    return result


def sheet(prompts: list[str], pictures: list[list[Image.Image]], zoom: int = 2) -> Image.Image:
    """One row a prompt, the prompt before it."""
    side = pictures[0][0].width * zoom
    canvas = Image.new("RGB", (LABEL + side * len(pictures[0]), side * len(prompts)), "white")
    pen = ImageDraw.Draw(canvas)
    for y, (prompt, row) in enumerate(zip(prompts, pictures, strict=True)):
        pen.text((4, y * side + side // 2 - 6), prompt, fill="black")
        for x, picture in enumerate(row):
            canvas.paste(picture.resize((side, side), 0), (LABEL + x * side, y * side))
    return canvas


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("prompts", nargs="+")
    options = parser.parse_args()
    pipe = TinyTextToImagePipeline.from_pretrained(options.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    sheet(options.prompts, rows(pipe, options.prompts, options)).save(options.out)


if __name__ == "__main__":
    main()
