# SPDX-License-Identifier: Apache-2.0
"""Spell as a user meets it: its settings, its three ways in, its shields and its history."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import diffusers
import pytest
import torch

import shielded
from ideal import Pipe, ideal, sample
from shielded import Shields, Spell
from shielded.errors import BadInput, NonFinite, ShapeMismatch

DATA = torch.randn(24, 48, generator=torch.Generator().manual_seed(1))
SHAPE = (6, 3, 4, 4)


def ddim():
    return Pipe(diffusers.DDIMScheduler(clip_sample=False))


def draw(spell, seed=0, shape=SHAPE, groups=None):
    pipe = ddim()
    with spell.on(pipe, groups=groups) as run:
        return sample(pipe.scheduler, ideal(DATA), shape, seed=seed), run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"radius": -1.0}, "0 or larger"),
        ({"radius": float("nan")}, "finite"),
        ({"radius": float("inf")}, "finite"),
        ({}, "calibrate"),
        ({"radius": 1.0, "overcompensation": float("nan")}, "finite"),
        ({"radius": 1.0, "overcompensation": -0.5}, ">= 0"),
        ({"radius": 1.0, "overlap": "mean"}, "project, sum"),
        ({"radius": 1.0, "window": (0.2, 0.8)}, "start >= stop"),
    ],
)
def test_bad_settings_are_named(options, words):
    with pytest.raises(BadInput, match=words):
        Spell(**options)


def test_bad_references_are_named():
    with pytest.raises(NonFinite, match="encode"):
        Shields.images(torch.full((1, 4), float("nan")))
    with pytest.raises(ShapeMismatch, match=r"latents\[None\]"):
        Shields.images(torch.zeros(4))
    with pytest.raises(BadInput, match="one id an image"):
        Shields.images(torch.zeros(2, 4), ids=["a"])
    with pytest.raises(BadInput, match="0 or larger"):
        Shields.batch(radius=-2.0)


def test_the_two_sources_join_and_each_has_its_radius():
    spell = Spell(Shields.batch(radius=3.0) + Shields.images(DATA[:4], radius=6.0))
    x, run = draw(spell)
    assert float(torch.pdist(x.flatten(1).double()).min()) >= 3 * (1 - 1e-5)
    assert float(torch.cdist(x.flatten(1).double(), DATA[:4].double()).min()) >= 6 * (1 - 1e-5)
    assert {c.radius for c in run.certificates} <= {3.0, 6.0}


def test_overcompensation_scales_the_move_and_sum_is_the_paper_s():
    x0 = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    z = x0.flatten(1) + 0.1
    moves = {
        lam: Spell(Shields.images(z), radius=2.0, overcompensation=lam).correct(x0) - x0
        for lam in (1.0, 1.6)
    }
    assert torch.allclose(moves[1.6], 1.6 * moves[1.0], atol=1e-6)
    both = Shields.images(torch.cat([z, z - 0.05]))
    summed = Spell(both, radius=2.0, overlap="sum").correct(x0)
    v = x0.flatten(1) - torch.cat([z, z - 0.05])
    expected = x0.flatten(1) + ((2.0 / v.norm(dim=1, keepdim=True) - 1) * v).sum(0)
    assert torch.allclose(summed.flatten(1), expected, atol=1e-5)


def test_coincident_images_have_a_way_out():
    x0 = torch.ones(3, 1, 4, 4)
    for overlap in ("project", "sum"):
        moved = Spell(Shields.images(x0[:1]), radius=2.0, overlap=overlap).correct(x0)
        assert float((moved - x0).flatten(1).norm(dim=1).min()) >= 2 * (1 - 1e-5)
        apart = Spell(Shields.batch(), radius=2.0, overlap=overlap).correct(x0)
        assert float(torch.pdist(apart.flatten(1)).min()) > 0.01


def test_window_in_noise_levels():
    x0 = torch.zeros(2, 1, 2, 2) + torch.tensor([0.0, 0.1]).reshape(2, 1, 1, 1)
    early = Spell(Shields.batch(), radius=2.0, window=(1.0, 0.6))
    assert torch.equal(early.correct(x0, noise_level=0.5), x0)
    assert not torch.equal(early.correct(x0, noise_level=0.7), x0)
    _, run = draw(Spell(Shields.batch(), radius=8.0, window=(0.9, 0.5)))
    acted = {r.noise_level for r in run.trace.records if bool((r.delta > 0).any())}
    assert acted
    assert all(0.5 <= level <= 0.9 for level in acted)


def test_without_landing_images_are_certified_as_they_are():
    free = Spell(Shields.images(DATA), radius=5.0, window=(1.0, 1.0), landing=False)
    x, run = draw(free)
    plain = sample(ddim().scheduler, ideal(DATA), SHAPE)
    assert torch.equal(x, plain)
    assert any(not c.clear for c in run.certificates)
    assert not any(c.landed for c in run.certificates)


def test_history_keeps_groups_apart_and_can_be_forgotten(tmp_path):
    history = Shields.history()
    spell = Spell(history, radius=6.0)
    first, _ = draw(spell, groups=["a", "a", "a", "b", "b", "b"])
    again, run = draw(spell, groups=["b", "b", "b", "c", "c", "c"])
    d = torch.cdist(again.flatten(1).double(), first.flatten(1).double())
    assert float(d[:3, 3:].min()) >= 6 * (1 - 1e-5)
    assert torch.equal(first[3:], again[3:]), "group c has no history: same seed, same image"
    assert {c.source for c in run.certificates[3:]} == {"none"}
    memory = history.histories[0]
    memory.save(tmp_path / "h.safetensors")
    loaded = Shields.history(path=tmp_path / "h.safetensors").histories[0]
    assert torch.equal(loaded.latents, memory.latents)
    assert loaded.groups == memory.groups
    spell.forget()
    free, _ = draw(spell, groups=["a", "a", "a", "b", "b", "b"])
    assert torch.equal(free, first)


def test_histories_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(BadInput, match="no history"):
        Shields.history(path=tmp_path / "none.safetensors")
    (tmp_path / "bad").write_bytes(b"no tensors here")
    with pytest.raises(BadInput, match="not a saved history"):
        Shields.history(path=tmp_path / "bad")
    history = Shields.history().histories[0]
    history.remember(torch.zeros(2, 4), ["a", ("b", 1)])
    history.save(tmp_path / "h")
    data = (tmp_path / "h").read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) - 4])
    with pytest.raises(BadInput, match="not a saved history"):
        Shields.history(path=tmp_path / "cut")
    assert Shields.history(path=tmp_path / "h").histories[0].groups == ["a", ("b", 1)]
    with pytest.raises(ShapeMismatch, match="forget"):
        history.remember(torch.zeros(1, 5), ["a"])


def test_two_spells_do_not_share_their_history():
    a, b = Spell(radius=1.0), Spell(radius=1.0)
    draw(a)
    assert len(a.shields.histories[0]) == SHAPE[0]
    assert len(b.shields.histories[0]) == 0


def heun(model, x, sigmas):
    """The second-order sampler of EDM, as its users write it."""
    for sigma, following in pairwise(sigmas):
        d = (x - model(x, sigma)) / sigma
        euler = x + (following - sigma) * d
        if following > 0:
            d = (d + (euler - model(euler, following)) / following) / 2
        x = x + (following - sigma) * d
    return x


def test_a_denoiser_of_edm_is_shielded_in_both_evaluations():
    clean = ideal(DATA)
    sigmas = torch.linspace(80**0.25, 0, 12) ** 4
    x = 80 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def model(x, sigma):
        return clean(x, 1.0, float(sigma)).float()

    plain = heun(model, x, sigmas)
    spell = Spell(Shields.batch(radius=4.0) + Shields.images(DATA, radius=5.0))
    denoiser = spell.denoiser(model)
    shielded_ = denoiser.finish(heun(denoiser, x, sigmas))
    data = DATA.double()
    assert float(torch.cdist(plain.flatten(1).double(), data).min()) < 1e-2
    assert float(torch.cdist(shielded_.flatten(1).double(), data).min()) >= 5 * (1 - 1e-5)
    assert all(c.clear for c in denoiser.certificates)
    assert len(denoiser.run.trace.records) == 2 * (len(sigmas) - 1) - 1
    far = Spell(Shields.images(DATA + 1e3), radius=1.0).denoiser(model)
    assert torch.equal(heun(far, x, sigmas), plain)
    with pytest.raises(BadInput, match="different sigma"):
        far(x, torch.arange(1, len(x) + 1))


def test_correct_is_a_denoised_fn():
    x0 = DATA[:5].reshape(5, 3, 4, 4)
    out = Spell(Shields.images(DATA[:2]), radius=3.0).correct(x0)
    assert out.dtype == x0.dtype
    assert torch.equal(out[2:], x0[2:])
    assert float((out[:2] - x0[:2]).flatten(1).norm(dim=1).min()) >= 3 * (1 - 1e-5)


def test_trace_and_certificates_are_json():
    import json

    _, run = draw(Spell(radius=8.0), groups=[("a", 1)] * 6)
    json.dumps(run.trace.to_dict())
    rows = [c.to_dict() for c in run.certificates]
    json.dumps(rows)
    assert rows[0]["group"] == "('a', 1)"
    assert all(record.ratio.shape == (6,) for record in run.trace.records)


def test_the_ratio_is_delta_over_score():
    """Figure 5: |alpha delta / sigma^2| / |score|, with score = (alpha x0 - x_t) / sigma^2."""
    from shielded.guidance import Guidance, Run, Shift, Step

    class Add(Guidance):
        def shift(self, step):
            return Shift(torch.full((2, 4), 0.5, dtype=torch.float64), torch.ones(2).long())

    x_t, x0 = torch.randn(2, 4), torch.randn(2, 4)
    run = Run(Add())
    run.begin()
    run.shift(Step(x_t, x0, 0.6, 0.8, (None, None)))
    score = (0.6 * x0 - x_t).double() / 0.64
    expected = 0.6 * 1.0 / 0.64 / score.norm(dim=1)
    assert torch.allclose(run.trace.records[0].ratio, expected, rtol=1e-6)
    assert run.trace.records[0].noise_level == pytest.approx(0.8 / 1.4)


def test_importing_needs_torch_alone_and_little_time():
    code = (
        "import torch, sys, time; t = time.perf_counter(); import shielded; "
        "from shielded import Shields, Spell; Spell(Shields.batch(), radius=1.0); "
        "print(time.perf_counter() - t); "
        "heavy = {'diffusers', 'transformers', 'typer', 'matplotlib', 'jinja2', 'lance'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    path = str(Path(shielded.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert result.returncode == 0, result.stderr
    assert len(shielded.__all__) <= 10
    assert all(hasattr(shielded, name) for name in ("Shields", "Spell", "calibrate"))
    assert callable(shielded.calibrate)
