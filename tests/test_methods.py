# SPDX-License-Identifier: Apache-2.0
"""The siblings of SPELL on real pipelines: off they are not there, on they do what papers say."""

import inspect
from contextlib import contextmanager

import diffusers
import pytest
import torch

from families import FAMILIES
from shielded import Shields, Spell
from shielded.errors import BadInput, NotApplicable
from shielded.methods import (
    CADS,
    GenerateAndDiscard,
    IntervalGuidance,
    LowerGuidance,
    ParticleGuidance,
)
from shielded.samplers.affine import affine
from shielded.samplers.network import counted

INF = float("inf")
# How each is guided: one doubled call with the condition second or first, or two calls.
DOUBLED = ["stable_diffusion", "deepfloyd_if", "stable_diffusion_3", "hunyuan_dit"]
TOLD_FIRST = ["dit", "z_image"]
TWO_CALLS = ["wan", "qwen_image", "lumina_2", "modular_sdxl"]
GUIDED = [*DOUBLED, *TOLD_FIRST, *TWO_CALLS]
UNGUIDED = {"guidance_scale": 1.0}
PLAIN_CALL = {"z_image": {"guidance_scale": 0.0}, "qwen_image": {"true_cfg_scale": 1.0}}
SCHEDULERS = {
    "DDIM": lambda: diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
    "Heun": lambda: diffusers.HeunDiscreteScheduler(),
    "DPM": lambda: diffusers.DPMSolverMultistepScheduler(),
    "Euler": lambda: diffusers.EulerDiscreteScheduler(),
    "UniPC-flow": lambda: diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
}
schedulers = pytest.mark.parametrize("name", SCHEDULERS)


@pytest.fixture(scope="module")
def made():
    """Families, each built once."""
    kept = {}
    return lambda name: kept.setdefault(name, FAMILIES[name]())


def test_pipelines_are_as_they_were_and_off_means_not_there(made):
    off = [
        ParticleGuidance(0.0),
        IntervalGuidance(0.0, INF),
        LowerGuidance(1.0),
        CADS(tau1=1.0, tau2=1.0),
        GenerateAndDiscard(Shields.batch(), radius=0.0),
    ]
    for name in ("stable_diffusion", "stable_diffusion_3", "dit", "z_image", "wan"):
        family = made(name)
        with counted(family.pipe) as rows:
            plain = family.run(seed=0)
        cls, scheduler = type(family.pipe), type(family.pipe.scheduler)
        for method in off:
            with method.on(family.pipe) as run:
                assert torch.equal(family.run(seed=0), plain), (name, method)
            assert run.evaluations == sum(rows), (name, method)
        assert (type(family.pipe), type(family.pipe.scheduler)) == (cls, scheduler)
        network = getattr(family.pipe, "transformer", None) or family.pipe.unet
        assert "forward" not in vars(network)
        assert torch.equal(family.run(seed=0), plain)


@pytest.mark.parametrize("name", GUIDED)
def test_no_interval_is_the_condition_alone_at_half_the_cost(made, name):
    family = made(name)
    with counted(family.pipe) as both:
        plain = family.run(seed=0)
    with IntervalGuidance(0.0, 0.0).on(family.pipe) as run:
        out = family.run(seed=0)
    assert run.evaluations == sum(both) // 2
    assert all(acted.strength == 0 for acted in run.acted)
    assert float((out - plain).abs().max()) > 1e-4
    if name == "modular_sdxl":  # its guider has no argument in the call
        guider = family.pipe.guider
        family.pipe.update_components(guider=guider.new(guidance_scale=1.0))
        alone = family.run(seed=0)
        family.pipe.update_components(guider=guider)
    else:
        alone = family.run(seed=0, **PLAIN_CALL.get(name, UNGUIDED))
    assert torch.allclose(out, alone, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("stable_diffusion", {"guidance_scale": (7.0, 4.0)}),
        ("dit", {"guidance_scale": (7.0, 4.0)}),
        ("wan", {"guidance_scale": (7.0, 4.0)}),
        ("qwen_image", {"true_cfg_scale": (7.0, 4.0)}),
        ("lumina_2", {"guidance_scale": (7.0, 4.0)}),
        ("z_image", {"guidance_scale": (6.0, 3.0)}),  # counts its weight from 0
    ],
)
def test_a_lower_weight_is_a_lower_guidance_scale(made, name, weights):
    family = made(name)
    high, low = ({k: pair[n] for k, pair in weights.items()} for n in (0, 1))
    with LowerGuidance(0.5).on(family.pipe) as run:
        out = family.run(seed=0, **high)
    assert torch.allclose(out, family.run(seed=0, **low), atol=2e-4)
    assert not torch.allclose(out, family.run(seed=0, **high), atol=2e-4)
    assert {acted.strength for acted in run.acted} == {0.5}


def by_hand(pipe, steps, weight, told=lambda embeds, t: embeds):
    """Sampling as the papers write it: latents of seed 0, w(sigma), and what the model is told."""
    scheduler = pipe.scheduler
    scheduler.set_timesteps(steps)
    embeds, negative = pipe.encode_prompt(["a dog", "two cats"], "cpu", 1, True)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    x, takes = x * getattr(scheduler, "init_noise_sigma", 1.0), inspect.signature(scheduler.step)
    more = (
        {"generator": torch.Generator().manual_seed(9)} if "generator" in takes.parameters else {}
    )
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        alpha, sigma, _, _ = affine(scheduler, t)
        with torch.no_grad():
            cond = pipe.unet(scaled, t, told(embeds, t)).sample
            plain = pipe.unet(scaled, t, negative).sample
        w = weight(sigma / alpha if alpha else INF)
        x = scheduler.step(plain + w * (cond - plain), t, x, return_dict=False, **more)[0]
    return x


@contextmanager
def scheduled(family, name):
    before = family.pipe.scheduler
    family.pipe.scheduler = SCHEDULERS[name]()
    try:
        yield family.pipe
    finally:
        family.pipe.scheduler = before


@schedulers
def test_the_interval_is_the_paper_s_on_every_scheduler(made, name):
    """w for low < sigma <= high and 1 elsewhere, at every evaluation, second-order ones too."""
    family = made("stable_diffusion")
    with scheduled(family, name) as pipe:
        sigmas = []
        by_hand(pipe, 6, lambda sigma: sigmas.append(sigma) or 7.5)
        low, high = sorted(sigmas)[1], sorted(sigmas)[-2]  # both are noise levels of the schedule
        expected = by_hand(pipe, 6, lambda sigma: 7.5 if low < sigma <= high else 1.0)
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        with IntervalGuidance(low, high).on(pipe) as run:
            out = pipe(
                **family.call | {"num_inference_steps": 6},
                latents=x,
                generator=torch.Generator().manual_seed(9),
                output_type="latent",
            ).images
    assert torch.allclose(out, expected, atol=1e-4 * float(expected.abs().max()))
    inside = [float(low < sigma <= high) for sigma in sigmas]
    assert [acted.strength for acted in run.acted] == inside
    assert 0 < sum(inside) < len(inside)
    assert [acted.evaluations for acted in run.acted] == [4 if i else 2 for i in inside]
    assert [acted.sigma for acted in run.acted] == pytest.approx(sigmas)
    assert run.evaluations == sum(acted.evaluations for acted in run.acted)


def test_images_of_a_part_of_the_way_are_followed_too(made):
    """Image to image starts in the middle of the schedule."""
    family = made("stable_diffusion_img2img")
    with scheduled(family, "Euler") as pipe:
        _, at = pipe.get_timesteps(4, 0.8, "cpu")
        assert at < 4
        with IntervalGuidance(0.0, INF).on(pipe) as run:
            family.run(seed=0)
    assert [a.timestep for a in run.acted] == [r.timestep for r in run.trace.records]
    assert run.acted[0].sigma < 13


@pytest.mark.parametrize("name", ["flux", "latent_consistency", "ddim", "sana_sprint"])
@pytest.mark.parametrize("method", [IntervalGuidance(), LowerGuidance(0.5)], ids=repr)
def test_pipelines_without_guidance_are_refused_at_their_first_step(made, name, method):
    family = made(name)
    with (
        pytest.raises(NotApplicable, match="guidance scale above 1"),
        method.on(family.pipe) as run,
    ):
        family.run(seed=0)
    assert run.certificates == []
    assert torch.isfinite(family.run(seed=0)).all()


def test_what_cannot_be_known_is_refused(made):
    class Bare:
        scheduler = diffusers.DDIMScheduler()

    for method in (IntervalGuidance(), CADS(), LowerGuidance(0.5)):
        with pytest.raises(NotApplicable, match="unet"), method.on(Bare()):
            pass
        with pytest.raises(NotApplicable, match="pipeline"):
            method.denoiser(lambda x, sigma: x)
        with pytest.raises(NotApplicable, match="pipeline"):
            method.correct(torch.zeros(1, 4))
    family = made("dit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shielded.samplers.network.TOLD_FIRST", ("None",))
        with pytest.raises(NotApplicable, match="other way round"), CADS().on(family.pipe):
            family.run(seed=0)


def test_two_images_from_one_noise_are_not_taken_for_one_image_twice(made):
    family = made("flux")
    call = family.call | {"latents": torch.randn(1, 16, 16).repeat(2, 1, 1), "output_type": "np"}
    with CADS().on(family.pipe) as run:
        first, second = family.pipe(**call | {"prompt": ["a dog", "a dog"]}).images
    assert run.evaluations == 2 * len(run.acted)
    assert (first != second).any()
    with pytest.raises(NotApplicable, match="noise of its own"), CADS().on(family.pipe):
        family.pipe(**call)


def test_three_predictions_are_refused(made):
    """Instructions on pictures mix three: with all, with the picture, with nothing."""
    from pipelines import tiny
    from pipelines.unet import _clip_parts, _picture

    parts = _clip_parts({"in_channels": 8})
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline(
        **parts, scheduler=diffusers.EulerDiscreteScheduler()
    )
    assert tiny.DIM
    pipe.set_progress_bar_config(disable=True)
    for method in (IntervalGuidance(), CADS()):
        with pytest.raises(NotApplicable, match="three predictions"), method.on(pipe):
            pipe("a dog", image=_picture(), num_inference_steps=2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: IntervalGuidance(2.0, 1.0), "low <= high"),
        (lambda: IntervalGuidance(float("nan"), 1.0), "low <= high"),
        (lambda: LowerGuidance(1.5), "between 0 and 1"),
        (lambda: CADS(tau1=0.9, tau2=0.5), "tau1 <= tau2"),
        (lambda: CADS(noise_scale=0.0), "tau1=1"),
        (lambda: CADS(mix=2.0), "between 0 and 1"),
        (lambda: ParticleGuidance(-1.0), ">= 0"),
        (lambda: ParticleGuidance(float("nan")), "finite"),
        (lambda: ParticleGuidance(1.0, window=(0.1, 0.9)), "start >= stop"),
        (lambda: GenerateAndDiscard(Shields.batch()), "calibrate"),
        (lambda: GenerateAndDiscard(radius=1.0, most=0), "1 or more"),
        (lambda: GenerateAndDiscard(radius=1.0, keep="worst"), "first, best"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(BadInput, match=words):
        make()


def test_methods_stack_with_each_other_and_with_spell(made):
    family = made("stable_diffusion")
    radius = 1.2 * float(torch.pdist(family.run(seed=0, latents=True).flatten(1)).median())
    with (
        Spell(Shields.batch(), radius=radius).on(family.pipe) as shielded,
        CADS().on(family.pipe) as noisy,
        IntervalGuidance(0.5, 3.0).on(family.pipe) as interval,
    ):
        out = family.run(seed=0, latents=True)
    assert float(torch.pdist(out.flatten(1)).min()) >= radius * (1 - 1e-4)
    assert all(c.clear for c in shielded.certificates)
    assert interval.evaluations == noisy.evaluations
    assert any(a.strength == 0 for a in interval.acted)
    assert any(a.strength < 1 for a in noisy.acted)


def test_an_error_in_the_block_leaves_the_pipeline_plain(made):
    family = made("dit")
    plain = family.run(seed=0)
    for method in (CADS(), IntervalGuidance(), GenerateAndDiscard(radius=1.0), ParticleGuidance()):
        with pytest.raises(RuntimeError, match="mine"), method.on(family.pipe):
            raise RuntimeError("mine")
        assert torch.equal(family.run(seed=0), plain)
        assert "forward" not in vars(family.pipe.transformer)
