# SPDX-License-Identifier: Apache-2.0
"""`shielded bench NAME`: the tables and figures of the documentation, measured here."""

import enum
import inspect
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from shielded.cli.guard import guarded

DEFAULT = "tiny-fashion"


class Split(enum.StrEnum):
    """Which real images bundled models are held against."""

    test = "test"
    validation = "validation"


class Name(enum.StrEnum):
    """The benches, one file each in `shielded.bench`."""

    sprites = "sprites"
    takedown = "takedown"
    overlap = "overlap"
    overhead = "overhead"
    scale = "scale"
    protected = "protected"
    diversity = "diversity"
    radius = "radius"
    pareto = "pareto"
    sparsity = "sparsity"
    one_by_one = "one-by-one"
    guidance = "guidance"
    protection = "protection"
    prediction = "prediction"
    dpp = "dpp"
    grid = "grid"
    set_size = "set-size"
    spaces = "spaces"
    copies = "copies"
    unwanted = "unwanted"
    nudging = "nudging"
    semantic_cost = "semantic-cost"


def bench(
    name: Annotated[Name, typer.Argument(help="Which table.")],
    out: Annotated[Path, typer.Option(help="Folder for the .md, .csv and .json.")] = Path("bench"),
    smoke: Annotated[bool, typer.Option(help="A small size that ends in seconds.")] = False,
    features: Annotated[
        Path | None, typer.Option(help="ResNet-56 weights (safetensors), for `sprites`.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Archive of training pictures (npz), for `sprites`, `protected`, `protection` "
            "and `set-size`."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A bundled name, a folder or a hub id, for the figures.")
    ] = None,
    real: Annotated[
        Path | None,
        typer.Option(help="JSON file, condition -> files of real images, for --model."),
    ] = None,
    extractor: Annotated[
        str | None, typer.Option(help="NAME or NAME:PATH of the features, for --model.")
    ] = None,
    split: Annotated[
        Split | None,
        typer.Option(help="Real images of a bundled model: test, or validation to choose by."),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Images of each condition; for `protected` in all: 5000."),
    ] = None,
    runs: Annotated[int | None, typer.Option(min=1, help="Runs, for `diversity`: 5.")] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of the larger set, for `protected`: 200000; for `protection` of tiny-sprites.",
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images at a time, for `protected`: 16.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampling steps: the model's own.")
    ] = None,
    autocast: Annotated[
        bool, typer.Option(help="Let the network compute in bfloat16, for the figures.")
    ] = False,
) -> None:
    """Measure one table of the documentation and print it as Markdown."""
    given = {
        "features": features,
        "data": data,
        "images": images,
        "runs": runs,
        "size": size,
        "batch": batch,
        "steps": steps,
    }
    with guarded():
        from shielded.cli.bench_subject import find_subject
        from shielded.cli.load import quiet
        from shielded.errors import BadInput

        asked: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        run = _bench(name)
        takes = _takes(run)
        if autocast and "autocast" in takes:  # it loads its models itself
            asked["autocast"] = True
        told = any(value is not None for value in (model, real, extractor, split))
        told = told or (autocast and "autocast" not in takes)
        if told and "one" not in takes:
            raise BadInput(
                f"{name.value} has its own model: leave --model, --autocast and what goes with "
                "them out."
            )
        if told or ("one" in takes and "steps" in asked):
            few = asked.pop("steps", 4 if smoke else None)
            held = (split or Split.test).value
            asked["one"] = find_subject(model or DEFAULT, real, extractor, few, held, autocast)
        _check(name, asked, takes)
        quiet()
        work = out / f"{name.value}.work"
        if "keep" in takes:  # what is there so far, row by row
            asked["keep"] = lambda table: table.write(out)
        if "work" in takes and not smoke:
            asked["work"] = work  # what is done: a run that was stopped goes on from there
        table = run(smoke=smoke, progress=_say, **asked)
        if autocast:
            table.notes.append("The network computed in bfloat16, all else in float32 or float64.")
        table.write(out)
        if "work" in asked:
            shutil.rmtree(work)
    typer.echo(table.markdown())


def _bench(name: Name) -> Callable[..., Any]:
    return import_module(f"shielded.bench.{name.name}").run


def _takes(run: Callable[..., Any]) -> set[str]:
    """The names of what a bench can be told."""
    return set(inspect.signature(run).parameters)


def _check(name: Name, asked: dict[str, Any], takes: set[str]) -> None:
    """Refuse options that this bench does not have, and files that are not there."""
    from shielded.errors import BadInput

    for key, value in asked.items():
        if key not in takes:
            owners = [other.value for other in Name if key in _takes(_bench(other))]
            names = " and ".join(f"`shielded bench {owner}`" for owner in owners)
            raise BadInput(f"--{key} belongs to {names}: leave it out.")
        if isinstance(value, Path) and not value.is_file():
            raise BadInput(f"there is no file {value}: check the path.")


def _say(text: str) -> None:
    typer.echo(text, err=True)
