# SPDX-License-Identifier: Apache-2.0
"""The adapter on every scheduler: exact where active, invisible where not, clear at the end."""

import copy
import inspect
from typing import ClassVar

import diffusers
import pytest
import torch

from ideal import CASES, Case, Pipe, ideal, sample
from shielded import Shields, Spell
from shielded.errors import NonFinite, NotShielded, ShapeMismatch, UnsupportedScheduler
from shielded.guidance import Guidance, Shift, flat
from shielded.samplers.affine import RULES, affine, clipped

every = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
DATA = torch.randn(24, 48, generator=torch.Generator().manual_seed(1))
SHAPE = (6, 3, 4, 4)


class Force(Guidance):
    """Sets the expected output of every call to a constant."""

    def __init__(self, value):
        self.value = value

    def shift(self, step):
        delta = flat(self.value) - flat(step.x0)
        return Shift(delta, torch.ones(len(delta), dtype=torch.long))


def test_the_table_is_covered():
    assert {case.cls for case in CASES} == set(RULES)
    assert len(RULES) >= 28


@every
def test_inactive_is_bit_identical(case: Case):
    plain = sample(case.make(), ideal(DATA), SHAPE)
    pipe = Pipe(case.make())
    with Spell(Shields.batch(radius=0.0) + Shields.images(DATA + 1e3), radius=9.0).on(pipe) as run:
        shielded = sample(pipe.scheduler, ideal(DATA), SHAPE)
    assert torch.equal(plain, shielded)
    assert len(run.certificates) == len(plain)
    assert not run.trace.intervened().any()


@every
def test_our_x0_is_the_scheduler_s(case: Case):
    """Where `step` reports pred_original_sample, a x_t + b out equals it."""
    scheduler, calls = case.make(), []
    step = scheduler.step

    def watched(*args, **kwargs):
        names = inspect.signature(step).bind(*args, **kwargs).arguments
        _, _, a, b = affine(scheduler, names["timestep"])
        ours = a * names["sample"].double() + b * names["model_output"].double()
        result = step(*args, **kwargs)
        if len(result) > 1 and not case.cls.startswith("TCD"):  # TCD reports another quantity
            theirs = result[1].double()
            calls.append(float((ours - theirs).norm() / (1 + theirs.norm())))
        return result

    watched.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]
    scheduler.step = watched
    sample(scheduler, ideal(DATA), SHAPE)
    # Relative, and larger where x0 is a small difference of large numbers (alpha near 0).
    assert all(error < 1e-4 for error in calls)
    reports = {"DDIM", "DDPM", "UnCLIP", "EulerD", "Heun", "KDPM2", "LCM", "SCM", "EDMEuler", "LMS"}
    if any(case.cls.startswith(name) for name in reports):
        assert calls


@every
def test_a_forced_x0_is_what_is_returned(case: Case):
    """The solver carries the shifted prediction to the end, with nothing lost."""
    target = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    pipe = Pipe(case.make())
    with Force(target).on(pipe):
        got = sample(pipe.scheduler, ideal(DATA), SHAPE)
    free = sample(case.make(), ideal(DATA), SHAPE)
    error = (got - target).flatten(1).norm(dim=1) / target.flatten(1).norm(dim=1)
    assert float(error.max()) < case.lands
    assert float((free - target).norm()) > 1


@every
def test_clear_with_static_history_and_batch_shields(case: Case):
    """Appendix B on trial: an exact denoiser wants to return protected data, and may not."""
    radius, groups = 5.0, [g for g in range(25) for _ in range(4)]
    reference = DATA[:8].reshape(8, *SHAPE[1:])
    spell = Spell(Shields.batch() + Shields.history() + Shields.images(reference), radius=radius)
    pipe, finals = Pipe(case.make()), []
    plain = sample(case.make(), ideal(DATA), (100, *SHAPE[1:]))
    with spell.on(pipe, groups=groups) as run:
        for seed in (0, 1):
            x = sample(pipe.scheduler, ideal(DATA), (100, *SHAPE[1:]), seed=seed)
            finals.append(x.flatten(1).double())
    limit = radius * (1 - 1e-4)
    fixed = torch.cdist(
        torch.cat(finals), DATA[:8].double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    assert float(fixed.min()) >= limit
    for g in range(25):
        rows = torch.cat([x[4 * g : 4 * g + 4] for x in finals])
        assert float(torch.pdist(rows).min()) >= limit
    assert len(run.certificates) == 200
    assert all(certificate.clear for certificate in run.certificates)
    inside = torch.cdist(plain.flatten(1).double(), DATA[:8].double()).amin(1) < radius
    assert inside.any(), "the unshielded sampler must be tempted, or this test proves nothing"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "DPMSolverMultistep", "FlowMatchEuler"])
def test_low_precision_keeps_the_guarantee(name, dtype):
    """What is returned in 16 bits is outside, at the same tolerance as in 32."""
    case = next(case for case in CASES if case.cls.startswith(name))
    pipe, radius = Pipe(case.make()), 5.0
    spell = Spell(Shields.batch() + Shields.images(DATA[:8]), radius=radius)
    with spell.on(pipe, groups=[g for g in range(10) for _ in range(4)]) as run:
        x = sample(pipe.scheduler, ideal(DATA), (40, *SHAPE[1:]), dtype=dtype)
    assert x.dtype == dtype
    d = torch.cdist(x.flatten(1).double(), DATA[:8].double())
    assert float(d.min()) >= radius * (1 - 1e-4)
    assert all(certificate.clear for certificate in run.certificates)


def test_untouched_images_of_a_touched_batch_keep_their_bits():
    for case in CASES:
        if case.kind not in ("epsilon", None) or case.config.get("use_flow_sigmas"):
            continue
        plain = sample(case.make(), ideal(DATA), (12, *SHAPE[1:]))
        pipe = Pipe(case.make())
        with Spell(Shields.images(DATA[:2]), radius=2.0).on(pipe) as run:
            x = sample(pipe.scheduler, ideal(DATA), (12, *SHAPE[1:]))
        rest = ~run.trace.intervened()
        assert torch.equal(x[rest], plain[rest]), case.name


# The ten traps


def test_learned_variance_shifts_only_the_mean():
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    pipe, x = Pipe(scheduler), torch.randn(2, 3, 4, 4)
    out = torch.cat([torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4)], 1)
    seen = []
    plain_step = diffusers.DDPMScheduler.step
    target = torch.zeros_like(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            diffusers.DDPMScheduler,
            "step",
            lambda self, model_output, timestep, sample, generator=None, return_dict=True: (
                seen.append(model_output),
                plain_step(self, model_output, timestep, sample, generator, return_dict),
            )[1],
        )
        scheduler.set_timesteps(4)
        with pytest.warns(UserWarning, match="stopped before"), Force(target).on(pipe):
            result = scheduler.step(out, scheduler.timesteps[0], x)
    assert torch.equal(seen[0][:, 3:], out[:, 3:])
    assert float(result.pred_original_sample.abs().max()) < 1e-4


def test_doubled_batches_of_dit_are_one_batch():
    class DiTPipeline(Pipe):
        pass

    case = next(case for case in CASES if case.cls == "DDIMScheduler")
    pipe = DiTPipeline(case.make())
    spell = Spell(Shields.batch(), radius=6.0)
    with spell.on(pipe) as run:
        scheduler = pipe.scheduler
        scheduler.set_timesteps(8)
        x = torch.randn(4, 48, 1, 1, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:
            x = torch.cat([x[:4], x[:4]])
            alpha, sigma, a, b = affine(scheduler, t)
            out = ((ideal(DATA[:2])(x, alpha, sigma) - a * x.double()) / b).float()
            x = scheduler.step(out, t, x).prev_sample
    assert len(run.certificates) == 4
    assert torch.equal(x[:4], x[4:])
    assert float(torch.pdist(x[:4].flatten(1).double()).min()) >= 6.0 * (1 - 1e-4)


def test_clipping_is_seen():
    scheduler = diffusers.DDIMScheduler(clip_sample=True)
    assert float(clipped(scheduler, torch.full((1, 2), 3.0)).max()) == 1
    assert (
        float(clipped(diffusers.TCDScheduler(clip_sample=True), torch.full((1,), 3.0)).max()) == 3
    )
    thresholding = diffusers.DDPMScheduler(
        thresholding=True, clip_sample=False, sample_max_value=1.0
    )
    assert float(clipped(thresholding, torch.full((1, 2, 2, 2), 3.0)).abs().max()) <= 1


def test_pixel_samplers_that_clip_are_still_clear():
    """clip_sample pulls x0 + delta back into the box; landing has the last word."""
    data = DATA.clamp(-1, 1).sign() * 0.99
    pipe = Pipe(diffusers.DDIMScheduler(clip_sample=True))
    with Spell(Shields.batch() + Shields.images(data[:8]), radius=4.0).on(pipe) as run:
        x = sample(pipe.scheduler, ideal(data), (8, *SHAPE[1:]))
    assert all(certificate.clear for certificate in run.certificates)
    assert float(torch.cdist(x.flatten(1).double(), data[:8].double()).min()) >= 4.0 * (1 - 1e-4)


def test_the_class_is_transparent_and_restored():
    pipe = Pipe(diffusers.EulerDiscreteScheduler())
    scheduler, plain = pipe.scheduler, type(pipe.scheduler)
    with pytest.raises(RuntimeError, match="mine"), Spell(Shields.batch(), radius=1.0).on(pipe):
        assert pipe.scheduler is scheduler
        assert isinstance(scheduler, plain)
        assert type(scheduler) is not plain
        assert type(scheduler).__name__ == plain.__name__
        assert inspect.signature(scheduler.step) == inspect.signature(plain().step)
        assert type(copy.deepcopy(scheduler)) is plain
        assert type(copy.copy(scheduler)) is plain
        assert scheduler.config == plain().config
        raise RuntimeError("mine")
    assert type(pipe.scheduler) is plain


def test_refusals_name_the_remedy():
    class Other:
        config: ClassVar = {}

        def step(self):
            pass

    spell = Spell(Shields.batch(), radius=1.0)
    with pytest.raises(UnsupportedScheduler, match="DPMSolverMultistepScheduler"):
        spell.on(Pipe(Other())).__enter__()
    with pytest.raises(UnsupportedScheduler), spell.on(Pipe(diffusers.VQDiffusionScheduler(8))):
        pass
    pipe = Pipe(diffusers.EulerDiscreteScheduler())
    pipe.scheduler.set_timesteps(3)
    x, t = torch.randn(2, 3, 4, 4), pipe.scheduler.timesteps[0]
    with pytest.raises(UnsupportedScheduler, match="s_churn"), spell.on(pipe):
        pipe.scheduler.step(x, t, x, s_churn=1.0)
    pipe = Pipe(diffusers.FlowMatchEulerDiscreteScheduler())
    pipe.scheduler.set_timesteps(3)
    with pytest.raises(UnsupportedScheduler, match="per-token"), spell.on(pipe):
        pipe.scheduler.step(x, pipe.scheduler.timesteps[0], x, per_token_timesteps=torch.ones(2, 4))


def test_inverse_schedulers_are_refused():
    """They run towards noise: there is no image to shield."""
    for name in ("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"):
        pipe = Pipe(getattr(diffusers, name)())
        with pytest.raises(UnsupportedScheduler), Spell(Shields.batch(), radius=1.0).on(pipe):
            pass


def test_never_silently_unprotected():
    spell = Spell(Shields.batch(), radius=1.0)
    pipe = Pipe(diffusers.DDIMScheduler())
    with pytest.raises(NotShielded, match="no call"), spell.on(pipe):
        pass
    with pytest.raises(NotShielded, match="replaced"), spell.on(pipe):
        sample(pipe.scheduler, ideal(DATA), SHAPE)
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe = Pipe(diffusers.DDIMScheduler())
    x = torch.randn(SHAPE)
    with pytest.warns(UserWarning, match="stopped before the last"), spell.on(pipe) as run:
        pipe.scheduler.set_timesteps(4)
        pipe.scheduler.step(x, pipe.scheduler.timesteps[0], x)
    assert run.certificates == []


def test_bad_latents_are_named_and_the_scheduler_is_restored():
    pipe = Pipe(diffusers.DDIMScheduler(clip_sample=False))
    plain, x = type(pipe.scheduler), torch.randn(SHAPE)
    pipe.scheduler.set_timesteps(4)
    t = pipe.scheduler.timesteps[0]
    spell = Spell(Shields.batch(), radius=1.0)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NonFinite, match="NaN or infinity"), spell.on(pipe):
            pipe.scheduler.step(torch.full_like(x, bad), t, x)
        assert type(pipe.scheduler) is plain
    with pytest.raises(ShapeMismatch, match="same model"):
        with Spell(Shields.images(torch.zeros(1, 7)), radius=1.0).on(pipe):
            pipe.scheduler.step(x, t, x)
    with pytest.raises(ShapeMismatch, match="layout"):
        with Spell(Shields.images(torch.zeros(1, 4, 4, 3)), radius=1.0).on(pipe):
            pipe.scheduler.step(x, t, x)
    with pytest.raises(ShapeMismatch, match="groups"), spell.on(pipe, groups=["a", "b", "c", "d"]):
        pipe.scheduler.step(x, t, x)
    with pytest.raises(ShapeMismatch, match="latents of shapes"), spell.on(pipe):
        pipe.scheduler.step(x, t, x)
        pipe.scheduler.step(x[:, :1], t, x[:, :1])


def test_two_guidances_stack():
    """Nested blocks: each sees what the other made of x0."""
    pipe, target = Pipe(diffusers.DDIMScheduler(clip_sample=False)), torch.zeros(SHAPE)
    with Spell(Shields.batch(), radius=2.0).on(pipe) as run, Force(target).on(pipe):
        x = sample(pipe.scheduler, ideal(DATA), SHAPE)
    assert float(torch.pdist(x.flatten(1).double()).min()) >= 2.0 * (1 - 1e-4)
    assert all(certificate.clear for certificate in run.certificates)


def test_a_step_that_cannot_be_read_is_never_passed_through():
    class Renamed(diffusers.DDIMScheduler):
        def step(self, noise_pred, timestep, sample, return_dict=True):
            return super().step(noise_pred, timestep, sample, return_dict=return_dict)

    spell, x = Spell(Shields.batch(), radius=1.0), torch.randn(SHAPE)
    pipe = Pipe(Renamed())
    pipe.scheduler.set_timesteps(4)
    with pytest.raises(UnsupportedScheduler, match="model_output"), spell.on(pipe):
        pipe.scheduler.step(x, pipe.scheduler.timesteps[0], x)
    pipe = Pipe(diffusers.DDIMScheduler())
    pipe.scheduler.set_timesteps(4)
    with pytest.raises(TypeError, match="sample"), spell.on(pipe):
        pipe.scheduler.step(x, pipe.scheduler.timesteps[0])


def test_a_network_s_gradients_do_not_enter_the_trace():
    """Pipelines may run with gradients on; what is measured and remembered has none."""
    pipe = Pipe(diffusers.DDIMScheduler(clip_sample=False))
    pipe.scheduler.set_timesteps(4)
    x = torch.randn(SHAPE)
    with Spell(Shields.batch(), radius=50.0).on(pipe) as run:
        for t in pipe.scheduler.timesteps:
            out = x.clone().requires_grad_()
            x = pipe.scheduler.step(out, t, x).prev_sample
            assert x.requires_grad
            x = x.detach()
    assert bool((run.trace.records[0].delta > 0).any())
    assert not any(record.delta.requires_grad for record in run.trace.records)
