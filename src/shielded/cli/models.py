# SPDX-License-Identifier: Apache-2.0
"""`shielded models`: what comes with the package."""

import json as jsonlib
import sys
from pathlib import Path
from typing import Any

import typer

from shielded.cli import options as opt
from shielded.cli.guard import guarded


def models(json: opt.Json = False) -> None:
    """List the bundled models with what their cards say first."""
    with guarded():
        from shielded.models import available

        found = {name: describe(folder) for name, folder in available().items()}
    if json:
        sys.stdout.write(jsonlib.dumps(found, indent=2) + "\n")
        return
    for name, about in found.items():
        typer.echo(f"{name}  ({about['megabytes']:.1f} MB)")
        typer.echo(f"  {about['summary']}")
    typer.echo("--model also takes a folder with a diffusers pipeline, or a hub id.")


def describe(folder: Path) -> dict[str, Any]:
    """Size of a model's folder, and the first paragraph of its card."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"megabytes": round(size / 1e6, 2), "summary": summary(folder / "README.md")}


def summary(card: Path) -> str:
    """The first paragraph of a model card, past its front matter and titles."""
    text = card.read_text("utf-8") if card.is_file() else ""
    if text.startswith("---"):
        text = text.split("\n---", 1)[-1]
    for paragraph in text.split("\n\n"):
        words = " ".join(paragraph.split())
        if words and not words.startswith(("#", "!", "<", "|", "-")):
            return words
    return ""
