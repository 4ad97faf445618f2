# SPDX-License-Identifier: Apache-2.0
"""Every pipeline family, end to end: untouched when SPELL is inactive, clear when it acts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from itertools import combinations, product
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from families import FAMILIES, Family
from shielded import Shields, Spell

SLACK = 1e-4  # relative, of float32 latents
BLENDS = {"stable_diffusion_inpaint"}
NO_LATENTS = {"dit", "ldm_text_to_image", "ddpm", "ddim", "consistency_model"}
CLEARED = sorted(set(FAMILIES) - BLENDS)
LATENT = sorted(set(FAMILIES) - BLENDS - NO_LATENTS)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]()


@contextmanager
def recording(scheduler: Any) -> Iterator[list[torch.Tensor]]:
    """Note what each call of `step` returns; the signature stays, because pipelines read it."""
    step, seen = scheduler.step, []

    @wraps(step)
    def noted(*args, **kwargs):
        out = step(*args, **kwargs)
        seen.append((out[0] if isinstance(out, tuple) else out.prev_sample).clone())
        return out

    scheduler.step = noted
    try:
        yield seen
    finally:
        del scheduler.step


def plain_latents(family: Family, seed: int = 0) -> torch.Tensor:
    """What the last step returns without SPELL, one row an image, as the user sees it."""
    with recording(family.pipe.scheduler) as seen:
        family.run(seed)
    return seen_by_user(family, seen[-1])


def seen_by_user(family: Family, latents: torch.Tensor) -> torch.Tensor:
    """Drop DiT's second copy of the batch; clamp pixels and round them to 8 bits. Float64."""
    latents = latents[: family.images].flatten(1)
    if not family.rgb:
        return latents.double()
    levels = ((latents / 2 + 0.5).clamp(0, 1).float() * 255).round()  # as diffusers does
    return levels.double() / 127.5 - 1


def distances(latents: torch.Tensor) -> list[float]:
    rows = latents.double().flatten(1)
    return [float((rows[i] - rows[j]).norm()) for i, j in combinations(range(len(rows)), 2)]


def test_plain_run_is_finite_and_repeatable(family: Family) -> None:
    images = family.run(seed=0)
    assert len(images) == family.images
    assert torch.isfinite(images).all()
    assert torch.equal(images, family.run(seed=0))
    assert not torch.equal(images, family.run(seed=1))
    assert min(distances(images)) > 0


def test_inactive_is_bit_identical(family: Family) -> None:
    plain, scheduler = family.run(seed=0), family.pipe.scheduler
    kind, signature = type(scheduler), set(vars(scheduler))
    with Spell(Shields.batch(), radius=1e-6).on(family.pipe) as run:
        assert isinstance(family.pipe.scheduler, kind)
        shielded = family.run(seed=0)
    assert torch.equal(shielded, plain)
    assert len(run.trace.records) >= family.steps
    assert not run.trace.intervened().any()
    assert all(
        not record.active.any() and len(record.active) == family.images
        for record in run.trace.records
    )
    assert [c.index for c in run.certificates] == list(range(family.images))
    assert all(c.clear and not c.landed and not c.intervened for c in run.certificates)
    assert family.pipe.scheduler is scheduler
    assert type(scheduler) is kind
    assert set(vars(scheduler)) == signature


def shielded_run(
    family: Family, shields: Shields, radius: float, latents: bool = False, **settings
):
    """Output, run and what each step returned, of seed 0 under these shields."""
    with (
        Spell(shields, radius=radius, **settings).on(family.pipe) as run,
        recording(family.pipe.scheduler) as seen,
    ):
        output = family.run(seed=0, latents=latents)
    return output, run, seen


@pytest.mark.parametrize("family", CLEARED, indirect=True)
def test_batch_shields_clear_every_image(family: Family) -> None:
    radius = 1.2 * median(distances(plain_latents(family)))
    images, run, seen = shielded_run(family, Shields.batch(), radius)
    final = distances(seen_by_user(family, seen[-1]))
    assert torch.isfinite(images).all()
    assert min(final) >= radius * (1 - SLACK)
    assert [c.index for c in run.certificates] == list(range(family.images))
    assert all(c.clear and c.source == "batch" and c.radius == radius for c in run.certificates)
    assert min(c.distance for c in run.certificates) == pytest.approx(min(final), rel=1e-3)
    assert run.trace.intervened().any()
    assert any(c.intervened for c in run.certificates)
    assert not torch.equal(images, family.run(seed=0))
    if family.rgb:
        assert min(distances(seen_by_user(family, 2 * images - 1))) >= radius * (1 - SLACK)


@pytest.mark.parametrize("family", CLEARED, indirect=True)
def test_protected_images_do_not_come_back(family: Family) -> None:
    plain = plain_latents(family)
    radius = float(plain.norm(dim=1).min()) / 10
    shields = Shields.images(plain, ids=[f"image {i}" for i in range(family.images)])
    images, run, seen = shielded_run(family, shields, radius)
    away = torch.cdist(seen_by_user(family, seen[-1]), plain)
    assert torch.isfinite(images).all()
    assert away.min() >= radius * (1 - SLACK)
    assert len(run.certificates) == family.images
    # Where the last step returns x0 itself, guidance alone puts each image on its shield's surface.
    exact = not family.rgb and type(family.pipe.scheduler).__name__ != "PNDMScheduler"
    for certificate, distance in zip(run.certificates, away, strict=True):
        assert certificate.clear
        assert certificate.intervened
        assert certificate.source == "images"
        assert certificate.reference == f"image {int(distance.argmin())}"
        assert certificate.distance == pytest.approx(float(distance.min()), rel=1e-3)
        if exact:
            assert not certificate.landed
            assert certificate.distance == pytest.approx(radius, rel=SLACK)


@pytest.mark.parametrize("window", [(1.0, 0.0), (0.0, 0.0)], ids=["guided", "landed only"])
@pytest.mark.parametrize("family", LATENT, indirect=True)
def test_returned_latents_keep_their_distance(family: Family, window: tuple[float, float]) -> None:
    """What the pipeline hands out, not only what the scheduler returned, is clear."""
    unit = 0.5 if family.name == "sana_sprint" else 1.0  # it divides the latents by sigma_data
    radius = 1.2 * median(distances(plain_latents(family)))
    latents, run, _ = shielded_run(family, Shields.batch(), radius, latents=True, window=window)
    final = distances(unit * seen_by_user(family, latents))
    assert min(final) >= radius * (1 - SLACK)
    assert min(c.distance for c in run.certificates) == pytest.approx(min(final), rel=SLACK)


@pytest.mark.parametrize("family", CLEARED, indirect=True)
def test_landing_alone_moves_what_it_must_and_nothing_else(family: Family) -> None:
    plain = family.run(seed=0)
    radius = 1.2 * median(distances(plain_latents(family)))
    images, run, seen = shielded_run(family, Shields.batch(), radius, window=(0.0, 0.0))
    assert all(not record.delta.any() for record in run.trace.records)
    assert min(distances(seen_by_user(family, seen[-1]))) >= radius * (1 - SLACK)
    assert all(c.clear and c.intervened == c.landed for c in run.certificates)
    assert 1 <= sum(c.landed for c in run.certificates) < family.images
    for c, image, before in zip(run.certificates, images, plain, strict=True):
        assert torch.equal(image, before) != c.landed


@pytest.mark.parametrize("family", ["stable_diffusion_inpaint"], indirect=True)
def test_blended_latents_are_certified_before_the_blend(family: Family) -> None:
    """An inpainting pipeline writes the known part over what the last step returned."""
    radius = 1.2 * median(distances(plain_latents(family)))
    latents, run, seen = shielded_run(family, Shields.batch(), radius, latents=True)
    known, free = latents.chunk(2, dim=-1)
    assert torch.equal(free, seen[-1].chunk(2, dim=-1)[1])
    assert torch.equal(known[0], known[1])
    assert torch.isfinite(latents).all()
    assert len(run.certificates) == family.images
    assert all(c.clear for c in run.certificates)
    assert min(distances(seen[-1])) >= radius * (1 - SLACK)


LOW = ["stable_diffusion_xl", "flux", "dit", "kandinsky_decoder", "latent_consistency"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*product(LOW, ["bfloat16", "float16"]), ("deepfloyd_if", "float16"), ("ddim", "float16")],
)
def test_low_precision_keeps_the_distance(name: str, dtype: str) -> None:
    """Rounding moves what the sampler returns; the landing has the last word all the same."""
    family = FAMILIES[name]().to(getattr(torch, dtype))
    plain, latents = family.run(seed=0), plain_latents(family)
    with Spell(Shields.batch(), radius=1e-6).on(family.pipe):
        assert torch.equal(family.run(seed=0), plain)
    radius = float(latents.norm(dim=1).min()) / 10
    _, run, seen = shielded_run(family, Shields.images(latents), radius)
    assert seen[-1].dtype == getattr(torch, dtype)
    away = torch.cdist(seen_by_user(family, seen[-1]), latents).min()
    assert away >= radius * (1 - SLACK)
    assert all(c.clear for c in run.certificates)
    assert min(c.distance for c in run.certificates) == pytest.approx(float(away), rel=SLACK)


@pytest.mark.parametrize("family", ["stable_diffusion", "flux", "dit", "wan"], indirect=True)
def test_saving_inside_the_block_writes_a_plain_pipeline(family: Family, tmp_path: Path) -> None:
    images, kind = family.run(seed=0), type(family.pipe.scheduler)
    with Spell(Shields.batch(), radius=1e-6).on(family.pipe):
        family.run(seed=0)
        family.pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is type(family.pipe)
    assert type(loaded.scheduler) is kind
    for part in loaded.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)  # as the family's own: torch sums the others another way
    assert torch.equal(replace(family, pipe=loaded).run(seed=0), images)
