# SPDX-License-Identifier: Apache-2.0
"""`shielded check`: how close images came to a protected set, whatever made them."""

import csv
import datetime
import io
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from shielded.cli import options as opt
from shielded.cli.guard import NOT_CLEAR, guarded, say
from shielded.cli.protect_build import (
    aside_lines,
    checked_source,
    images,
    open_with_pipe,
    printable,
    size_of,
)
from shielded.errors import BadInput

FORMAT = 1  # of check.json
COLUMNS = (
    "image", "source", "nearest", "nearest_source", "distance", "radius", "inside", "skipped",
)  # fmt: skip
TOLD = 10  # images inside that the closing lines name


def check(
    source: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGES", help="What to check, as for build.", show_default=False),
    ],
    against: Annotated[
        Path, typer.Option(metavar="SET", help="The protected set.", show_default=False)
    ],
    radius: Annotated[
        float | None,
        typer.Option(help="Judge by this radius alone.", show_default="the set's and its images'"),
    ] = None,
    model: opt.SetModel = None,
    batch_size: opt.AtOnce = 16,
    limit_pixels: opt.LimitPixels = opt.PIXELS,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("out/check"),
    json: opt.Json = False,
) -> None:
    """Find the nearest protected image of each of IMAGES, and tell whether it is too close.

    Exits with 3 if an image is inside a shield, or could not be read and so was not judged.
    """
    with guarded():
        stream = checked_source(source, radius, batch_size, limit_pixels, named=True)
        run = _check(
            stream, against, radius, model, device, dtype, out, json,
            batch=batch_size, limit=limit_pixels,
        )  # fmt: skip
    if json:
        from shielded.report.run_json import dumps

        sys.stdout.write(dumps(run))
    summary = run["summary"]
    if summary["inside"]:
        say(f"{summary['inside']:,} of {images(summary['images'])} are inside a shield.")
    if summary["skipped"]:
        say(f"{summary['skipped']:,} could not be read and were NOT judged.")
    if summary["inside"] or summary["skipped"]:
        raise typer.Exit(NOT_CLEAR)


def _check(
    stream: Any,
    against: Path,
    radius: float | None,
    model: str | None,
    device: str | None,
    dtype: str | None,
    out: Path,
    silent: bool,
    **how: Any,
) -> dict[str, Any]:
    """Everything between the options and the content of check.json."""
    from shielded.cli import files

    files.writable(out, "check.json")
    target, pipe = open_with_pipe(against, model, device, dtype, silent)
    from shielded.cli.audit import audit, matches
    from shielded.cli.stream_bar import stream_bar

    start, size = time.perf_counter(), size_of(target)
    with stream_bar("encode", silent) as move:
        found, built = audit(target, pipe, stream, radius, move, size=size, **how)
    if not found.checked and not built.skipped:
        raise BadInput("there are no images to check: give a folder, a list or an archive of them.")
    run = _record(target, found, built, radius, time.perf_counter() - start)
    _save(out, run, matches(found, pipe, size))
    if not silent:
        for line in _lines(run, built, out):
            typer.echo(line)
        for one in built.skipped:
            say(f"skipped {printable(one.id)}: {one.reason}")
    return run


def _record(
    target: Any, found: Any, built: Any, radius: float | None, seconds: float
) -> dict[str, Any]:
    from shielded.cli.settings import reproduce
    from shielded.report.run_json import versions

    distances = [one.distance for one in found.checked]
    return {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "command": reproduce(sys.argv[1:]),
        "set": {
            "path": str(target.path),
            "version": target.version,
            "images": len(target),
            "fingerprint": target.fingerprint,
        },
        "radius": target.radius if radius is None else radius,
        "summary": {
            "images": len(found.checked),
            "inside": sum(one.inside for one in found.checked),
            "skipped": len(built.skipped),
            "nearest": min(distances, default=None),
            "seconds": round(seconds, 3),
        },
        "images": [one.to_dict() for one in found.checked],
        "skipped": [{"id": one.id, "reason": one.reason} for one in built.skipped],
        "first_frames": built.first_frames,
        "left_aside": dict(built.aside),
    }


def _save(out: Path, run: dict[str, Any], shown: list[Any]) -> None:
    """Write sheet.png, check.csv and check.json; check.json last, so it means finished."""
    from shielded.cli import files
    from shielded.report.check_sheet import check_sheet
    from shielded.report.run_json import dumps

    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(run["images"])
    writer.writerows({"image": one["id"], "skipped": one["reason"]} for one in run["skipped"])
    (out / "sheet.png").unlink(missing_ok=True)  # of an earlier run
    if shown:
        summary = run["summary"]
        title = f"{summary['inside']:,} of {images(summary['images'])} inside a shield"
        name = f"{images(run['set']['images'])} in {Path(run['set']['path']).name}"
        less = "" if len(shown) == summary["images"] else f", the {len(shown)} nearest shown"
        sheet = check_sheet(shown, title, f"against {name}{less}")
        files.write(out / "sheet.png", files.png(sheet))
    files.write(out / "check.csv", table.getvalue().encode("utf-8"))
    files.write(out / "check.json", dumps(run).encode("utf-8"))


def _lines(run: dict[str, Any], built: Any, out: Path) -> list[str]:
    """The summary for a person."""
    summary = run["summary"]
    told = [
        f"{images(summary['images'])} checked against {run['set']['images']:,} protected, "
        f"{summary['inside']:,} inside a shield"
    ]
    inside = sorted((one for one in run["images"] if one["inside"]), key=lambda o: o["distance"])
    for one in inside[:TOLD]:
        told.append(
            f"  {printable(one['image'])} is {one['distance']:.4g} from "
            f"{printable(one['nearest'])}, radius {one['radius']:.4g}"
        )
    if len(inside) > TOLD:
        told.append(f"  and {len(inside) - TOLD:,} more: see {out / 'check.csv'}")
    if not inside and summary["nearest"] is not None:
        told.append(f"the nearest is {summary['nearest']:.4g} away")
    told += aside_lines(built)
    sheet = f"{out / 'sheet.png'} and " if run["images"] else ""
    told.append(f"{summary['seconds']:.1f} s; {sheet}{out / 'check.csv'}")
    return told
