# SPDX-License-Identifier: Apache-2.0
"""CADS against its equations: schedule and moments, who is told what, and whose noise it is."""

import functools
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import diffusers
import pytest
import torch

from families import FAMILIES
from shielded.errors import NotApplicable
from shielded.methods import CADS
from shielded.methods.cads import anneal

# Which arguments of each network hold the condition.
TOLD = {
    "stable_diffusion_xl": ["encoder_hidden_states", "text_embeds"],
    "stable_diffusion_3": ["encoder_hidden_states", "pooled_projections"],
    "hunyuan_dit": ["encoder_hidden_states", "encoder_hidden_states_t5"],
    "kandinsky_decoder": ["image_embeds"],
    "z_image": ["cap_feats"],
    "flux": ["encoder_hidden_states", "pooled_projections"],
    "wan": ["encoder_hidden_states"],
    "modular_sdxl": ["encoder_hidden_states", "text_embeds"],
}
TWO_CALLS = {"wan", "modular_sdxl"}
UNGUIDED = {"flux"}
FIRST = {"z_image"}  # the told half comes first


@pytest.fixture(scope="module")
def made():
    """Families, each built once."""
    kept = {}
    return lambda name: kept.setdefault(name, FAMILIES[name]())


@contextmanager
def heard(pipe):
    """The conditions that the network itself is given, call by call."""
    network = getattr(pipe, "transformer", None) or pipe.unet
    calls, plain = [], network.forward

    @functools.wraps(plain)
    def forward(*args, **kwargs):
        given = kwargs | (kwargs.get("added_cond_kwargs") or {})
        names = ["x", "t", "cap_feats"] if "ZImage" in type(network).__name__ else ["x", "t", "y"]
        calls.append(given | dict(zip(names, args, strict=False)))
        return plain(*args, **kwargs)

    network.forward = forward
    try:
        yield calls
    finally:
        del network.forward


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_the_equations(gamma):
    """y^ in closed form; with mix = 1 the moments of y, each image's own; mix between."""
    seed = torch.Generator().manual_seed(0)
    y = torch.randn(3, 5, 7, generator=seed) * torch.tensor([1.0, 2.0, 3.0])[:, None, None] + 4
    n = torch.randn(3, 5, 7, generator=seed)
    noisy = gamma**0.5 * y + 0.25 * (1 - gamma) ** 0.5 * n
    assert torch.allclose(anneal(y, gamma, n, 0.25, 0.0), noisy, atol=1e-6)
    scaled = anneal(y, gamma, n, 0.25, 1.0)
    for one, was, raw in zip(scaled, y, noisy, strict=True):
        assert one.mean() == pytest.approx(was.mean().item(), rel=1e-5)
        assert one.std() == pytest.approx(was.std().item(), rel=1e-5)
        assert torch.allclose(
            (one - one.mean()) / one.std(), (raw - raw.mean()) / raw.std(), atol=1e-5
        )
    assert torch.allclose(anneal(y, gamma, n, 0.25, 0.4), 0.4 * scaled + 0.6 * noisy, atol=1e-5)
    if gamma == 1:
        assert torch.allclose(scaled, y, atol=1e-5)


def test_the_schedule():
    cads = CADS(tau1=0.6, tau2=0.9)
    times = [1.0, 0.9, 0.75, 0.6, 0.0]
    assert [cads.gamma(t) for t in times] == pytest.approx([0, 0, 0.5, 1, 1])
    step = CADS(tau1=0.5, tau2=0.5)
    assert [step.gamma(t) for t in (0.51, 0.5, 0.49)] == [0, 1, 1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        lambda: diffusers.EulerDiscreteScheduler(),
        lambda: diffusers.HeunDiscreteScheduler(),
        lambda: diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True),
        lambda: diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    ],
    ids=["DDIM", "Euler", "Heun", "DPM-Karras", "flow"],
)
def test_time_is_the_model_s_on_every_scheduler(made, make):
    """t / T at every call of the network, from the schedule itself and not from a step count."""
    family = made("stable_diffusion")
    before, family.pipe.scheduler = family.pipe.scheduler, make()
    try:
        with CADS(tau1=0.3, tau2=0.8).on(family.pipe) as run:
            family.run(seed=0, num_inference_steps=6)
        times = [float(t) / 1000 for t in family.pipe.scheduler.timesteps]
    finally:
        family.pipe.scheduler = before
    assert [a.time for a in run.acted] == pytest.approx(times)
    expected = [min(max((0.8 - t) / 0.5, 0.0), 1.0) for t in times]
    assert [a.strength for a in run.acted] == pytest.approx(expected)
    assert len({a.strength for a in run.acted}) > 2


@pytest.mark.parametrize("name", TOLD)
def test_only_the_told_rows_hear_noise(made, name):
    """In doubled batches, in calls of two, without guidance: every condition, no other row."""
    family = made(name)
    cads = CADS(tau1=0.0, tau2=1.0, mix=0.0, noise_scale=0.5)
    with heard(family.pipe) as plain:
        before = family.run(seed=0)
    with heard(family.pipe) as noisy, cads.on(family.pipe) as run:
        after = family.run(seed=0)
    assert torch.isfinite(after).all()
    assert not torch.equal(after, before)
    assert len(plain) == len(noisy)
    calls = 2 if name in TWO_CALLS else 1
    for key in TOLD[name]:
        seen = []
        for k, (was, now) in enumerate(zip(plain, noisy, strict=True)):
            y, heard_, gamma = was[key], now[key], run.acted[k // calls].strength
            if name in TWO_CALLS:
                told = slice(None) if k % 2 == 0 else slice(0)
            elif name in UNGUIDED:
                told = slice(None)
            else:
                half = len(y) // 2
                told = slice(half) if name in FIRST else slice(half, None)
            rest = [row for row in range(len(y)) if row not in range(len(y))[told]]
            assert all(torch.equal(y[row], heard_[row]) for row in rest)
            for row in range(len(y))[told]:
                if gamma == 1:
                    assert torch.equal(y[row], heard_[row])
                    continue
                spread = 0.5 * (1 - gamma) ** 0.5
                seen.append(((heard_[row] - gamma**0.5 * y[row]) / spread).flatten())
        noise = torch.cat(seen)
        assert abs(float(noise.mean())) < 4 / len(noise) ** 0.5
        assert float(noise.std()) == pytest.approx(1, abs=4 / (2 * len(noise)) ** 0.5)
        few = [one[:8] for one in seen]
        assert all(not torch.allclose(a, b) for a, b in pairwise(few))


@pytest.mark.parametrize("name", ["dit", "consistency_model"])
def test_classes_by_number_get_noise_on_their_embedding(made, name, monkeypatch):
    """The class itself is gone, through all the blocks that embed it."""
    family, cads = made(name), CADS(mix=0.0, noise_scale=0.5)
    monkeypatch.setattr(CADS, "gamma", lambda self, time: 0.0)  # noise alone, to the end
    plain = family.run(seed=0)
    with cads.on(family.pipe):
        after = family.run(seed=0)
    assert not torch.equal(after, plain)
    assert torch.isfinite(after).all()
    assert torch.equal(family.run(seed=0), plain)
    other = [5] * family.images  # with noise alone the class is not heard at all
    assert not torch.equal(family.run(seed=0, class_labels=other), plain)
    with cads.on(family.pipe):
        assert torch.equal(family.run(seed=0, class_labels=other), after)


def test_noise_belongs_to_the_image_and_goes_on(made):
    """The same block gives the same images; the next generation has new noise; a smaller batch
    hears for its images what the larger one hears for them."""
    family = made("stable_diffusion")
    cads = CADS(tau1=0.0, tau2=1.0, mix=0.0)
    with cads.on(family.pipe):
        first, second = family.run(seed=0), family.run(seed=0)
    with heard(family.pipe) as two, cads.on(family.pipe):
        assert torch.equal(family.run(seed=0), first)
    assert not torch.equal(first, second)
    alone = replace(family, call=family.call | {"prompt": family.call["prompt"][:1]}, images=1)
    with heard(family.pipe) as one, cads.on(family.pipe):
        alone.run(seed=0)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a["encoder_hidden_states"][1], b["encoder_hidden_states"][2])
    with CADS(tau1=0.0, tau2=1.0, mix=0.0, seed=1).on(family.pipe):
        assert not torch.equal(family.run(seed=0), first)


def test_images_of_one_prompt_get_noise_of_their_own(made):
    family = made("stable_diffusion")
    noise = torch.randn(1, 4, 8, 8).repeat(3, 1, 1, 1)  # only the condition differs
    call = {"prompt": "a dog", "num_images_per_prompt": 3, "latents": noise}
    with CADS().on(family.pipe) as run:
        x = family.run(seed=0, latents=True, **{k: v for k, v in call.items() if k != "latents"})
        family.pipe(**family.call | call)
    assert run.evaluations == 2 * 2 * 3 * len(run.acted) // 2
    assert float(torch.pdist(x.flatten(1)).min()) > 0


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_a_model_without_a_condition_is_refused(made, name):
    family = made(name)
    with pytest.raises(NotApplicable, match="no condition"), CADS().on(family.pipe):
        family.run(seed=0)
