# SPDX-License-Identifier: Apache-2.0
"""Particle guidance against its potential, by automatic differentiation and by hand."""

import math

import diffusers
import pytest
import torch

from families import FAMILIES
from ideal import CASES, Pipe, ideal, sample
from shielded.errors import NotApplicable
from shielded.guidance import Step
from shielded.methods import ParticleGuidance
from shielded.methods.particle import bandwidth, gradient

DATA = torch.randn(24, 48, generator=torch.Generator().manual_seed(1))
SHAPE = (6, 3, 4, 4)


def points(n=5, d=12, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def potential(x, h):
    """log Phi of the paper, with strength 1 and the bandwidth held."""
    k = torch.exp(-(x[:, None] - x[None]).square().sum(-1) / h)
    return -k.sum() / 2


@pytest.mark.parametrize("n", [2, 3, 4, 9])
def test_the_gradient_is_that_of_the_potential(n):
    x = points(n)
    free = x.clone().requires_grad_()
    potential(free, bandwidth(x)).backward()
    assert torch.allclose(gradient(x), free.grad, atol=1e-12)
    assert float(gradient(x).norm()) > 1e-3, "two images already push each other"
    assert torch.allclose(gradient(x).sum(0), torch.zeros(12, dtype=x.dtype), atol=1e-12)


def test_the_bandwidth_is_the_median_rule_of_different_images():
    """h = m^2 / log n, m over pairs: the zeros of the diagonal are no distances."""
    x = points(4)
    d = sorted(float((x[i] - x[j]).norm()) for i in range(4) for j in range(i))
    assert bandwidth(x) == pytest.approx(((d[2] + d[3]) / 2) ** 2 / math.log(4))
    two = points(2)
    assert bandwidth(two) == pytest.approx(float((two[0] - two[1]).square().sum()) / math.log(2))


def test_turned_moved_and_scaled_images_are_pushed_alike():
    x = points()
    turn = torch.linalg.qr(points(12, 12, seed=3)).Q
    assert torch.allclose(gradient(x @ turn), gradient(x) @ turn, atol=1e-10)
    assert torch.allclose(gradient(x + 3), gradient(x), atol=1e-9)
    assert torch.allclose(gradient(7 * x), gradient(x) / 7, atol=1e-10)
    assert torch.equal(gradient(torch.ones(3, 4, dtype=torch.float64)), torch.zeros(3, 4).double())
    apart = gradient(torch.cat([x[:1], x[:1], x[2:]]))
    assert torch.isfinite(apart).all()


def test_the_shift_is_the_same_in_every_frame():
    """delta = (sigma^2 / alpha) grad log Phi, whether x_t is kept as DDIM or as Euler keeps it."""
    x, guidance = points(4).reshape(4, 3, 2, 2), ParticleGuidance(50.0, window=(0.99, 0.1))
    keys = (None,) * 4
    kept = guidance.shift(Step(x, x, 0.6, 0.8, keys))
    exploding = guidance.shift(Step(x / 0.6, x, 1.0, 0.8 / 0.6, keys))
    assert kept is not None
    assert exploding is not None
    assert torch.allclose(kept.delta, exploding.delta, atol=1e-9)
    score_shift = 0.6 / 0.64 * kept.delta  # score' = score + (alpha / sigma^2) delta
    assert torch.allclose(score_shift, 50.0 * gradient(x.flatten(1)), atol=1e-9)


def test_groups_do_not_see_each_other_and_one_image_has_nobody():
    x, guidance = points(5).reshape(5, 3, 2, 2), ParticleGuidance(50.0)
    keys = ("a", "b", "a", "a", "c")
    shift = guidance.shift(Step(x, x, 0.6, 0.8, keys))
    assert shift is not None
    assert shift.active.tolist() == [2, 0, 2, 2, 0]
    assert torch.allclose(
        shift.delta[[0, 2, 3]], 50.0 * 0.64 / 0.6 * gradient(x.flatten(1)[[0, 2, 3]])
    )
    assert not shift.delta[[1, 4]].any()
    assert guidance.shift(Step(x[:1], x[:1], 0.6, 0.8, (None,))) is None
    assert guidance.shift(Step(x, x, 0.9, 0.43, (None,) * 5)) is None, "sigma < 1"
    assert guidance.shift(Step(x, x, 0.0, 1.0, (None,) * 5)) is None, "pure noise"


def test_sampling_is_the_paper_s_by_hand():
    """DDIM with eps' = eps - sigma grad log Phi(x_t) at sigma / alpha >= 1, to the last step."""
    clean, pipe = ideal(DATA), Pipe(diffusers.DDIMScheduler(clip_sample=False))
    with ParticleGuidance(40.0).on(pipe) as run:
        guided = sample(pipe.scheduler, clean, SHAPE)
    scheduler, generator = diffusers.DDIMScheduler(clip_sample=False), torch.Generator()
    scheduler.set_timesteps(8)
    x = torch.randn(SHAPE, generator=generator.manual_seed(0)).double()
    acted = []
    for t in scheduler.timesteps:
        abar = float(scheduler.alphas_cumprod[t])
        alpha, sigma = abar**0.5, (1 - abar) ** 0.5
        eps = (x - alpha * clean(x, alpha, sigma)) / sigma
        acted.append(sigma >= alpha)
        if sigma >= alpha:
            eps = eps - sigma * 40.0 * gradient(x.flatten(1)).reshape(SHAPE)
        before = t - 1000 // 8
        abar = float(scheduler.alphas_cumprod[before] if before >= 0 else 1.0)
        x0 = (x - sigma * eps) / alpha
        x = abar**0.5 * x0 + (1 - abar) ** 0.5 * eps
    assert torch.allclose(guided.double(), x, atol=1e-4)
    assert [bool((r.delta > 0).all()) for r in run.trace.records] == acted
    assert run.evaluations == 8 * len(guided)
    free = sample(diffusers.DDIMScheduler(clip_sample=False), clean, SHAPE)
    assert not torch.allclose(guided, free, atol=1e-2)


SOME = ["DDPM", "PNDM", "EulerD", "Heun", "UniPC", "FlowMatchEuler", "EDMEuler", "SCM", "LCM", "CM"]
ONE_EACH = [next(case for case in CASES if case.cls.startswith(name)) for name in SOME]


@pytest.mark.parametrize("case", ONE_EACH, ids=[case.name for case in ONE_EACH])
def test_off_is_bit_identical_and_on_is_finite_on_every_scheduler(case):
    plain = sample(case.make(), ideal(DATA), SHAPE)
    pipe = Pipe(case.make())
    with ParticleGuidance(0.0).on(pipe):
        assert torch.equal(sample(pipe.scheduler, ideal(DATA), SHAPE), plain)
    with ParticleGuidance(20.0, window=(0.99, 0.0)).on(pipe) as run:
        pushed = sample(pipe.scheduler, ideal(DATA), SHAPE)
    assert torch.isfinite(pushed).all()
    assert run.trace.intervened().all()


def blur(data):
    """A model of one broad Gaussian: images in a cloud around the mean, as far as one likes."""

    def denoise(x, alpha, sigma):
        return x.double() * alpha / (alpha**2 + sigma**2)

    return denoise


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "FlowMatchEuler", "Heun", "UniPC"])
def test_images_end_further_apart(name):
    case = next(c for c in CASES if c.cls.startswith(name) and c.kind in ("epsilon", None))
    plain = sample(case.make(), blur(DATA), SHAPE)
    pipe = Pipe(case.make())
    with ParticleGuidance(20.0).on(pipe) as run:
        pushed = sample(pipe.scheduler, blur(DATA), SHAPE)
    for record in run.trace.records:  # second evaluations of a step are pushed like the first
        assert bool((record.delta > 0).all()) == (0.5 <= record.noise_level <= 0.99)
    near, far = (torch.pdist(x.flatten(1)) for x in (plain, pushed))
    assert float(far.min()) > 1.02 * float(near.min())
    assert float(far.mean()) > 1.02 * float(near.mean())


FAMILY = ["stable_diffusion", "stable_diffusion_3", "flux", "dit", "wan", "deepfloyd_if", "ddim"]


@pytest.mark.parametrize("name", FAMILY)
def test_it_works_on_pipelines_guided_or_not(name):
    """No guidance is needed, packed latents and learned variances are fine, nothing is dropped."""
    family = FAMILIES[name]()
    plain = family.run(seed=0)
    with ParticleGuidance(300.0).on(family.pipe) as run:
        pushed = family.run(seed=0)
    assert torch.isfinite(pushed).all()
    assert not torch.equal(pushed, plain)
    assert len(run.trace.records) >= family.steps
    for record in run.trace.records:
        assert bool((record.delta > 0).all()) == (0.5 <= record.noise_level <= 0.99)
    assert run.evaluations % family.images == 0
    keys = list(range(family.images))
    with ParticleGuidance(300.0).on(family.pipe, groups=keys):
        assert torch.equal(family.run(seed=0), plain)


def test_a_denoiser_function_may_be_guided_and_x0_alone_may_not():
    clean = ideal(DATA)
    guided = ParticleGuidance(40.0).denoiser(lambda x, sigma: clean(x, 1.0, float(sigma)).float())
    x = 5 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    delta = guided(x, 5.0).double() - clean(x, 1.0, 5.0).float().double()
    expected = 40.0 * 25 * gradient(x.double().flatten(1)).reshape(SHAPE)
    assert torch.allclose(delta, expected, atol=1e-4)
    with pytest.raises(NotApplicable, match="noisy"):
        ParticleGuidance().correct(x)
