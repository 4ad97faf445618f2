# SPDX-License-Identifier: Apache-2.0
"""What a finished run leaves behind: run.json, the sheet, the plot, the page, a few lines."""

import datetime
from typing import Any

import numpy as np

from shielded.cli import files
from shielded.cli.run import Work
from shielded.report.page import number, page
from shielded.report.pair import Pair
from shielded.report.run_json import FORMAT, dumps, nearest_pair, versions
from shielded.report.sheet import contact_sheet
from shielded.report.trace_plot import DARK, trace_plot


def record(work: Work, pairs: list[Pair], facts: dict[str, Any]) -> dict[str, Any]:
    """The content of run.json; `facts` holds command, model, settings and calibration."""
    settings = work.settings
    return {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        **facts,
        "prompts": list(settings.prompts),
        "seed": settings.seed,
        "num_images": settings.num_images,
        "summary": _summary(work, pairs),
        "images": [_image(pair) for pair in pairs],
        "trace": [one.to_dict() for one in work.series],
    }


def save(work: Work, pairs: list[Pair], run: dict[str, Any]) -> None:
    """Write sheet.png, trace.png, report.html and run.json; run.json last, so it means finished."""
    out = work.settings.out
    plots = [trace_plot(work.series), trace_plot(work.series, DARK)]
    files.write(out / "sheet.png", files.png(contact_sheet(pairs, _subtitle(run))))
    files.write(out / "trace.png", plots[0])
    files.write(out / "report.html", page(run, pairs, *plots).encode("utf-8"))
    files.write(out / "run.json", dumps(run).encode("utf-8"))


def lines(run: dict[str, Any], out: Any) -> list[str]:
    """The summary for a person."""
    summary = run["summary"]
    total = summary["images"]
    noun = "image" if total == 1 else "images"
    told = [f"{total} {noun}, {summary['moved']} moved by SPELL"]
    if summary["identical"] is not None:
        told[0] += f", {summary['identical']} bit-identical to plain"
    told[0] += f", radius {number(run['settings']['radius'])}"
    plain, shielded = summary["nearest_pair_plain"], summary["nearest_pair_shielded"]
    if shielded is not None:
        before = "" if plain is None else f"{number(plain)} plain, "
        told.append(f"nearest pair of images: {before}{number(shielded)} with SPELL")
    if not summary["not_clear"]:
        told.append("all clear")
    told.append(f"{summary['seconds']['total']:.1f} s; {out}/report.html and {out}/sheet.png")
    return told


def _summary(work: Work, pairs: list[Pair]) -> dict[str, Any]:
    has_plain = pairs[0].plain is not None
    seconds = {name: round(value, 3) for name, value in work.seconds.items()}
    return {
        "images": len(pairs),
        "moved": sum(pair.intervened for pair in pairs),
        "identical": sum(bool(pair.identical) for pair in pairs) if has_plain else None,
        "not_clear": sum(not pair.clear for pair in pairs),
        "nearest_pair_plain": _nearest(pairs, "plain") if has_plain else None,
        "nearest_pair_shielded": _nearest(pairs, "shielded"),
        "seconds": {**seconds, "total": round(sum(work.seconds.values()), 3)},
    }


def _nearest(pairs: list[Pair], which: str) -> float | None:
    """Smallest distance between two 8-bit images of one prompt, in [-1, 1] colour."""
    found = []
    for prompt in dict.fromkeys(pair.prompt for pair in pairs):
        images = [getattr(pair, which) for pair in pairs if pair.prompt == prompt]
        distance = nearest_pair([np.asarray(image, dtype=np.float64) / 127.5 for image in images])
        if distance is not None:
            found.append(distance)
    return min(found, default=None)


def _image(pair: Pair) -> dict[str, Any]:
    name = files.image_name(pair.index, pair.seed)
    return {
        "index": pair.index,
        "seed": pair.seed,
        "prompt": pair.prompt,
        "plain": f"plain/{name}" if pair.plain is not None else None,
        "shielded": f"shielded/{name}",
        "identical": pair.identical,
        "certificate": pair.certificate,
    }


def _subtitle(run: dict[str, Any]) -> str:
    """One line under the title of the sheet."""
    steps = run["settings"]["steps"]
    parts = [run["model"]["name"], run["model"]["scheduler"]]
    parts += [f"{steps} steps"] if steps else []
    return ", ".join([*parts, f"radius {number(run['settings']['radius'])}"])
