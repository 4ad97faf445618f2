# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

MODEL = "tiny-sprites"
PIXELS = 100_000_000

Prompts = Annotated[
    list[str], typer.Argument(help="What the images should show.", show_default=False)
]
NumImages = Annotated[int, typer.Option("-n", "--num-images", help="Images a prompt.")]
Seed = Annotated[int, typer.Option(help="Seed of the first image; the next has the next seed.")]
Model = Annotated[
    str, typer.Option(help="A bundled model, a folder with a diffusers pipeline, or a hub id.")
]
Steps = Annotated[int | None, typer.Option(help="Sampling steps.", show_default="the model's own")]
GuidanceScale = Annotated[
    float | None,
    typer.Option(help="Classifier-free guidance scale.", show_default="the model's own"),
]
Scheduler = Annotated[
    str | None,
    typer.Option(help="A diffusers scheduler by its class name.", show_default="the model's own"),
]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Images made together.", show_default="16 for bundled models, else 4"),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", show_default="the best one here")
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, float16 or bfloat16.", show_default="float32 on the CPU"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and nothing else there.")]

Set = Annotated[
    Path, typer.Argument(metavar="SET", help="Folder of the protected set.", show_default=False)
]
Pictures = Annotated[
    list[Path], typer.Argument(metavar="SOURCE", help="Where the pictures are.", show_default=False)
]
SetModel = Annotated[
    str | None,
    typer.Option("--model", help="Instead of the set's own.", show_default="the set's"),
]
Prefix = Annotated[
    str, typer.Option(help="Put before every id, to keep sources with the same names apart.")
]
AtOnce = Annotated[int, typer.Option("--batch-size", help="Pictures encoded together.")]
LimitPixels = Annotated[
    int, typer.Option(help="A picture with more pixels is skipped: it may be a bomb.")
]
