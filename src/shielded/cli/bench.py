# SPDX-License-Identifier: Apache-2.0
"""`shielded bench NAME`: the tables of the documentation, measured here."""

import enum
import shutil
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from shielded.cli.guard import guarded


class Name(enum.StrEnum):
    """The benches, one file each in `shielded.bench`."""

    sprites = "sprites"
    takedown = "takedown"
    overlap = "overlap"
    overhead = "overhead"
    scale = "scale"
    protected = "protected"


OWN = {  # options that not every bench has
    "features": (Name.sprites,),
    "data": (Name.sprites, Name.protected),
    "images": (Name.protected,),
    "size": (Name.protected,),
    "batch": (Name.protected,),
    "steps": (Name.protected,),
}


def bench(
    name: Annotated[Name, typer.Argument(help="Which table.")],
    out: Annotated[Path, typer.Option(help="Folder for the .md, .csv and .json.")] = Path("bench"),
    smoke: Annotated[bool, typer.Option(help="A small size that ends in seconds.")] = False,
    features: Annotated[
        Path | None, typer.Option(help="ResNet-56 weights (safetensors), for `sprites`.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Archive of training tiles (npz), for `sprites` and `protected`."),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Images a way, for `protected`: 5000.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Of the larger set, for `protected`: 200000.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images at a time, for `protected`: 16.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampling steps, for `protected`: the model's own.")
    ] = None,
) -> None:
    """Measure one table of the documentation and print it as Markdown."""
    with guarded():
        from shielded.errors import BadInput

        given = {
            "features": features,
            "data": data,
            "images": images,
            "size": size,
            "batch": batch,
            "steps": steps,
        }
        asked: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        for key in asked:
            if name not in OWN[key]:
                owners = " and ".join(f"`shielded bench {owner.value}`" for owner in OWN[key])
                raise BadInput(f"--{key} belongs to {owners}: leave it out.")
        for path in (features, data):
            if path is not None and not path.is_file():
                raise BadInput(f"there is no file {path}: check the path.")
        from shielded.cli.load import quiet

        quiet()
        work = out / f"{name.value}.work"
        if name in (Name.sprites, Name.scale):  # each row is kept as soon as it is there
            asked["keep"] = lambda table: table.write(out)
        if name in (Name.scale, Name.protected) and not smoke:
            asked["work"] = work  # what is done: a run that was stopped goes on from there
        table = import_module(f"shielded.bench.{name.value}").run(
            smoke=smoke, progress=_say, **asked
        )
        table.write(out)
        if "work" in asked:
            shutil.rmtree(work)
    typer.echo(table.markdown())


def _say(text: str) -> None:
    typer.echo(text, err=True)
