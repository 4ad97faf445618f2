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

Radius = Annotated[
    str, typer.Option(help="Radius of the shields: a number in units of --space, or auto.")
]
Method = Annotated[
    str,
    typer.Option(
        help="spell, or a sibling: kernel, particle, posterior, safe-denoiser, sgf, cads, "
        "interval, lower, discard, nudging."
    ),
]
Space = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help="Where distance is measured: latent, colour, location, style, smallnet:NAME, "
        "copynet:NAME, "
        "dinov2[:PATH], clip[:PATH], sscd:FILE.",
        show_default="latent",
    ),
]
SetSpace = Annotated[
    str | None,
    typer.Option(
        "--space",
        metavar="SPEC",
        help="The set's space, if its network has moved.",
        show_default="the set's",
    ),
]
TinyDecoder = Annotated[
    Path | None,
    typer.Option(help="File of a tiny decoder (TAESD and its kin) to look ahead with in --space."),
]
Every = Annotated[int, typer.Option(help="Look at every so many sampling steps only.")]
Overcompensation = Annotated[
    float, typer.Option(help="Factor on every move; 1.6 is good on several models.")
]
Overlap = Annotated[
    str, typer.Option(help="Where shields overlap: project (safe) or sum (the paper).")
]
Window = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="START STOP",
        help="Noise levels between which the method acts.",
        show_default="the method's; for spell 1 0",
    ),
]
Strength = Annotated[
    float | None,
    typer.Option(
        help="Of kernel, particle, posterior, safe-denoiser and sgf.", show_default="the method's"
    ),
]
Variant = Annotated[
    str | None, typer.Option(help="Of kernel: kernel or score.", show_default="kernel")
]
Attract = Annotated[bool, typer.Option("--attract", help="Of kernel: pull together instead.")]
Share = Annotated[
    float | None,
    typer.Option(help="Of lower: the part of the guidance weight above 1.", show_default="0.5"),
]
History = Annotated[
    Path | None,
    typer.Option(help="File of earlier images to keep away from; the new ones are added."),
]
Protect = Annotated[
    Path | None,
    typer.Option(help="Protected set, or folder of images, that no result may come close to."),
]
ProtectRadius = Annotated[
    float | None, typer.Option(help="Their radius, if another than --radius.")
]
Out = Annotated[Path | None, typer.Option(help="Output folder.", show_default="out/PROMPT-seedN")]
Plain = Annotated[bool, typer.Option("--plain/--no-plain", help="Make the plain images, too.")]
