# SPDX-License-Identifier: Apache-2.0
"""`shielded data cc12m`: the soft-label split of the paper's Appendix E."""

import json as jsonlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shielded.cli import options as opt
from shielded.cli.guard import guarded, say
from shielded.data.domain import Domain

if TYPE_CHECKING:
    from shielded.data import Built, Settings
    from shielded.data.images import Fetched


def cc12m(
    table: Annotated[
        Path,
        typer.Argument(metavar="TSV", help="CC12M's own table, unpacked.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the split.")] = Path("cc12m"),
    domain_share: Annotated[
        float,
        typer.Option(help="A caption goes if one domain has this share of its images or more."),
    ] = 0.5,
    domain: Annotated[
        Domain,
        typer.Option(help="What counts as one: example.co.uk, img1.example.co.uk, or uk."),
    ] = Domain.site,
    seed: Annotated[int, typer.Option(help="Seed of the random split.")] = 0,
    images: Annotated[
        bool, typer.Option("--images", help="Fetch the images, too, with img2dataset.")
    ] = False,
    image_size: Annotated[
        int, typer.Option(min=1, help="Side of the fetched images in pixels.")
    ] = 256,
    json: opt.Json = False,
) -> None:
    """Make the split of captions with 4 to 128 images each out of CC12M.

    Writes captions.jsonl, images.jsonl and summary.json. Run it again after an interruption: it
    goes on. With --images the pictures come as tar archives, which `shielded protect build` reads.
    """
    with guarded():
        from shielded.data.images import fetch, fetcher

        program = fetcher() if images else None
        settings = _settings(domain_share, domain, seed)
        built, seconds = _build(table, out, settings, json)
        found = fetch(built.images, image_size, program) if program else None
    for row in built.summary["table"]["first_skipped"]:
        say(f"line {row['line']:,} skipped: {row['reason']}")
    if json:
        told: dict[str, Any] = {**built.summary, "seconds": round(seconds, 3), "out": str(out)}
        if found is not None:
            told["fetched"] = {"images": found.images, "of": found.listed}
        sys.stdout.write(jsonlib.dumps(told, indent=2) + "\n")
    else:
        typer.echo("\n".join(_lines(built, found, seconds)))


def _settings(share: float, domain: Domain, seed: int) -> "Settings":
    from fractions import Fraction

    from shielded.data import Settings
    from shielded.errors import BadInput

    if not 0 < share <= 1:
        raise BadInput(f"--domain-share is {share:g}: give a number above 0 and at most 1.")
    return Settings(Fraction(str(share)), domain, seed)


def _build(table: Path, out: Path, settings: "Settings", silent: bool) -> tuple["Built", float]:
    from shielded.cli.stream_bar import stream_bar
    from shielded.data import build_cc12m

    start = time.perf_counter()
    with stream_bar("read", silent) as move:
        built = build_cc12m(
            table, out, settings, lambda title, share, rows: move(share, rows, title)
        )
    return built, time.perf_counter() - start


def _lines(built: "Built", found: "Fetched | None", seconds: float) -> list[str]:
    """The summary for a person: each filter, then the split beside the paper's."""
    told, table = built.summary, built.summary["table"]
    rate = table["rows"] / max(seconds, 1e-3)
    rows = [f"{table['rows']:,} images with captions, {rate:,.0f} a second"]
    if skipped := sum(table["skipped"].values()):
        rows[0] += f"; {skipped:,} {'line' if skipped == 1 else 'lines'} skipped"
    for step in told["left_after"]:
        rows.append(
            f"{step['step']:<16}{step['captions']:>12,} captions{step['images']:>12,} images"
        )
    for name, count in told["captions"].items():
        rows.append(f"{name:<16}{count:>12,} captions{told['images'][name]:>12,} images")
    rows.append("the paper: validation 554 captions, test 5,000 captions with 41,596 images")
    rows.append(f"{built.captions}, {built.images.name}")
    if found is not None:
        rows.append(f"{found.images:,} of {found.listed:,} images in {found.folder}/*.tar")
    return rows
