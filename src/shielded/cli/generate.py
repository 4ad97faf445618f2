# SPDX-License-Identifier: Apache-2.0
"""`shielded generate`: the same seeds without and with SPELL."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from shielded.cli import options as opt
from shielded.cli.guard import NOT_CLEAR, Kept, guarded, say
from shielded.cli.settings import (
    BUNDLED_BATCH,
    CALIBRATION_IMAGES,
    OTHER_BATCH,
    Settings,
    parse_radius,
    reproduce,
)
from shielded.errors import BadInput


def generate(
    prompts: opt.Prompts,
    num_images: opt.NumImages = 16,
    seed: opt.Seed = 0,
    model: opt.Model = opt.MODEL,
    steps: opt.Steps = None,
    guidance_scale: opt.GuidanceScale = None,
    scheduler: opt.Scheduler = None,
    radius: Annotated[
        str, typer.Option(help="Radius of the shields: a number, or auto to calibrate.")
    ] = "auto",
    overcompensation: Annotated[
        float, typer.Option(help="Factor on every move; 1.6 is good on several models.")
    ] = 1.0,
    overlap: Annotated[
        str, typer.Option(help="Where shields overlap: project (safe) or sum (the paper).")
    ] = "project",
    window: Annotated[
        tuple[float, float],
        typer.Option(metavar="START STOP", help="Noise levels between which SPELL acts."),
    ] = (1.0, 0.0),
    history: Annotated[
        Path | None,
        typer.Option(help="File of earlier images to keep away from; the new ones are added."),
    ] = None,
    protect: Annotated[
        Path | None,
        typer.Option(help="Protected set, or folder of images, that no result may come close to."),
    ] = None,
    protect_radius: Annotated[
        float | None, typer.Option(help="Their radius, if another than --radius.")
    ] = None,
    batch_size: opt.BatchSize = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    out: Annotated[
        Path | None, typer.Option(help="Output folder.", show_default="out/PROMPT-seedN")
    ] = None,
    json: opt.Json = False,
    plain: Annotated[
        bool, typer.Option("--plain/--no-plain", help="Make the plain images, too.")
    ] = True,
) -> None:
    """Make the same seeds twice, without and with SPELL, and report the difference."""
    given = {**locals()}
    silent = given.pop("json")
    kept = Kept()
    with guarded(kept):
        from shielded.cli.files import default_out

        given["prompts"] = tuple(prompts)
        given["radius"] = parse_radius(radius)
        given["out"] = default_out(prompts[0], seed) if out is None else out
        run = _generate(Settings(**given), kept, silent)
    if silent:
        from shielded.report.run_json import dumps

        sys.stdout.write(dumps(run))
    if unclear := run["summary"]["not_clear"]:
        say(
            f"{unclear} of {run['summary']['images']} images are still inside a shield: take a "
            "smaller --radius, or leave out the images that the report marks."
        )
        raise typer.Exit(NOT_CLEAR)


def _generate(settings: Settings, kept: Kept, silent: bool) -> dict[str, Any]:
    """Everything between the checked settings and the content of run.json."""
    from shielded.cli import files

    _check_early(settings)
    folders = ("plain", "shielded") if settings.plain else ("shielded",)
    files.writable(settings.out, "run.json", folders)
    files.clear(settings.out)
    kept.folder = str(settings.out)

    from shielded.cli.outcome import lines, record, save
    from shielded.cli.protect import protected

    work, device = _prepare(settings, kept, silent)
    shields = _shields(settings)
    if settings.protect is not None:
        shields = shields + protected(work.pipe, settings.protect, settings.protect_radius)
    calibration, radius = None, settings.radius
    if radius is None:
        calibration = _calibrated(work)
        radius = calibration.radius
    spell = _spell(settings, shields, radius)
    if settings.plain:
        work.make_plain()
    work.make_shielded(spell)
    pairs = work.pairs()
    run = record(work, pairs, _facts(work, spell, calibration, device))
    save(work, pairs, run)
    if any(pair.identical is False and not pair.intervened for pair in pairs):
        say("Some images that SPELL did not touch differ: this model is not deterministic here.")
    if not silent:
        for line in lines(run, settings.out):
            typer.echo(line)
    return run


def _check_early(settings: Settings) -> None:
    """Say what is wrong with settings and files before a model is loaded."""
    from shielded.cli.protect import ready

    if settings.protect is not None:
        ready(settings.protect)
    _spell(settings, _shields(settings), 0.0)


def _prepare(settings: Settings, kept: Kept, silent: bool) -> tuple[Any, str]:
    """The pipeline and the batches, as Work, and the device's name."""
    from shielded.cli.progress import Progress

    progress, start = Progress(silent), time.perf_counter()
    with progress.waiting(f"loading {settings.model}"):
        from shielded.cli.load import load_pipe, quiet, warn_unknown_words
        from shielded.cli.run import Work
        from shielded.cli.sample import batches, call_options
        from shielded.models import available

        quiet()
        pipe, device = load_pipe(
            settings.model, settings.device, settings.dtype, settings.scheduler
        )
    options = call_options(
        pipe, {"num_inference_steps": settings.steps, "guidance_scale": settings.guidance_scale}
    )
    warn_unknown_words(pipe, settings.prompts)
    default = BUNDLED_BATCH if settings.model in available() else OTHER_BATCH
    size = settings.batch_size or default
    made = batches(settings.prompts, settings.num_images, settings.seed, size)
    work = Work(settings, pipe, made, size, options, progress, kept)
    work.seconds["load"] = time.perf_counter() - start
    return work, device


def _shields(settings: Settings) -> Any:
    """The batch, and the history with the earlier images of --history."""
    from shielded import Shields

    path = settings.history
    if path is not None and not path.absolute().parent.is_dir():
        raise BadInput(f"The folder of {path} does not exist: make it first.")
    return Shields.batch() + Shields.history(path=path if path and path.exists() else None)


def _spell(settings: Settings, shields: Any, radius: float) -> Any:
    from shielded import Spell

    return Spell(
        shields,
        radius=radius,
        overcompensation=settings.overcompensation,
        overlap=settings.overlap,
        window=settings.window,
    )


def _calibrated(work: Any) -> Any:
    """The Calibration that --radius auto asks for."""
    from shielded import calibrate

    prompts, size = list(work.settings.prompts), work.batch_size
    total = len(prompts) * -(-CALIBRATION_IMAGES // size)
    with work.timed("calibrate"), work.progress.over(work.pipe, "calibrate", total):
        return calibrate(
            work.pipe,
            prompts,
            CALIBRATION_IMAGES,
            work.settings.seed,
            batch_size=size,
            **work.options,
        )


def _facts(work: Any, spell: Any, calibration: Any, device: str) -> dict[str, Any]:
    """The parts of run.json that say what was asked for and with what."""
    from shielded.cli.protect import described

    settings, pipe = work.settings, work.pipe
    asked = asdict(settings)
    for name in ("prompts", "num_images", "seed", "model", "out", "plain", "scheduler", "protect"):
        del asked[name]
    return {
        "command": reproduce(sys.argv[1:]),
        "model": {
            "name": settings.model,
            "pipeline": type(pipe).__name__,
            "scheduler": type(pipe.scheduler).__name__,
        },
        "settings": {
            **asked,
            "radius": spell.radius,
            "radius_from": "given" if calibration is None else "calibration",
            "window": list(settings.window),
            "history": str(settings.history) if settings.history else None,
            "protected": described(settings.protect, spell.shields),
            "batch_size": work.batch_size,
            "device": device,
            "dtype": str(pipe.dtype).removeprefix("torch."),
        },
        "calibration": None if calibration is None else calibration.to_dict(),
    }
