# SPDX-License-Identifier: Apache-2.0
"""Landing: what is returned is outside, or said not to be."""

import math
import warnings

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded.distances import Rough
from shielded.errors import ShieldedWarning
from shielded.landing import TOLERANCE, land
from shielded.landing import _ray as way_out
from shielded.repel import fixed_directions
from shielded.shields import Shields
from shielded.shields.images import within
from shielded.spaces import Latent, Pixels
from shielded.spell import Spell

some = settings(max_examples=10, deadline=None)


def spare(x):
    return lambda: fixed_directions(len(x), x.flatten(1).double())


def run(x, shields, radius, space=None, groups=None, **options):
    groups = (None,) * len(x) if groups is None else groups
    return land(x, shields, groups, radius, space or Latent(), spare(x), **options)


def measured(image):
    """What diffusers makes of it: PIL images, back in [-1, 1]."""
    pictures = VaeImageProcessor().postprocess(image, output_type="pil")
    stacked = torch.from_numpy(np.stack([np.asarray(p) for p in pictures]))
    return stacked.permute(0, 3, 1, 2).flatten(1).double() / 127.5 - 1


def pairs(x):
    return torch.pdist(x.flatten(1).double())


@some
@given(st.integers(0, 10_000), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_clear_after_rounding_to_the_sample_s_precision(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 4, 8, 8, generator=generator).to(dtype)
    z = torch.randn(5, 4, 8, 8, generator=generator)
    landing = run(x, Shields.batch() + Shields.images(z), 26.0)
    assert landing.sample.dtype == dtype
    assert float(pairs(landing.sample).min()) >= 26.0 * (1 - TOLERANCE)
    d = torch.cdist(landing.sample.flatten(1).double(), z.flatten(1).double())
    assert float(d.min()) >= 26.0 * (1 - TOLERANCE)
    assert all(nearest.clear for nearest in landing.nearest)


def test_clear_images_keep_their_bits_and_the_first_stays():
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x[2] = x[0] + 0.01
    landing = run(x, Shields.batch(), 5.0)
    assert landing.moved.tolist() == [False, False, True, False]
    assert torch.equal(landing.sample[[0, 1, 3]], x[[0, 1, 3]])
    assert float(pairs(landing.sample).min()) == pytest.approx(5.0, rel=1e-4)


@some
@given(
    st.integers(0, 10_000), st.floats(0.0, 0.9), st.sampled_from([torch.float32, torch.bfloat16])
)
def test_pixels_are_clear_after_clamp_and_rounding(seed, flat, dtype):
    """Sprites: much of the picture sits on the wall of the box, so a clamp undoes a naive move."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(1, 3, 16, 16, generator=generator)
    x = (base + 0.2 * torch.randn(4, 3, 16, 16, generator=generator)) * 1.5
    x[:, :, torch.rand(16, 16, generator=generator) < flat] = 1.3
    landing = run(x.to(dtype), Shields.batch() + Shields.images(base.clamp(-1, 1)), 6.0, Pixels())
    got = measured(landing.sample)
    assert float(torch.pdist(got).min()) >= 6.0 * (1 - TOLERANCE)
    assert float((got - base.clamp(-1, 1).flatten(1).double()).norm(dim=1).min()) >= 6 * (
        1 - TOLERANCE
    )
    assert all(nearest.clear for nearest in landing.nearest)
    assert torch.allclose(got, landing.measured.flatten(1))
    moved = [n.distance for n, m in zip(landing.nearest, landing.moved, strict=True) if m]
    assert all(d <= 6.0 * 1.02 for d in moved), "no further than needed"


def test_a_naive_clamp_would_have_failed():
    """The trial that asks for the box: Eq. 5 and then a clamp leaves the image inside."""
    z = torch.full((1, 3, 8, 8), 0.95)
    x = z + 0.01 * torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).abs()
    d = (x - z).norm()
    naive = (z + (x - z) * 2.0 / d).clamp(-1, 1)
    assert float((naive - z).norm()) < 1.5
    landing = run(x, Shields.images(z), 2.0, Pixels())
    assert float((measured(landing.sample) - z.flatten(1)).norm()) >= 2.0 * (1 - TOLERANCE)


@some
@given(st.integers(0, 10_000), st.sampled_from([2, 5, 40]), st.floats(0.05, 0.95))
def test_out_of_one_shield_no_point_of_the_box_is_nearer(seed, d, share):
    generator = torch.Generator().manual_seed(seed)
    x, z = (2 * torch.rand(2, d, generator=generator, dtype=torch.float64) - 1).unbind()
    furthest = (torch.where(x >= z, 1.0, -1.0).double() - z).norm()
    r = float((x - z).norm() * (1 - share) + furthest * share)
    y = way_out(x, z, r * r, (-1.0, 1.0))
    assert float((y - z).norm()) == pytest.approx(r, rel=1e-8)
    assert float(y.abs().max()) <= 1
    for scale in (1e-3, 0.1, 1.0):
        other = y + scale * torch.randn(2000, d, generator=generator, dtype=torch.float64)
        other = other.clamp(-1, 1)
        free = (other - z).norm(dim=1) >= r
        assert bool(((other[free] - x).norm(dim=1) >= (y - x).norm() * (1 - 1e-7)).all())


def test_a_way_out_that_enters_another_shield_leaves_that_too():
    """Two centres in a row along the wall of the box: out of the first means into the second."""
    z = torch.tensor([[-0.5, 0.9], [0.4, 0.9]]).repeat(1, 6).reshape(2, 3, 2, 2)
    x = z[:1] + 0.05 * (z[1:] - z[:1])
    assert float((x - z[1:]).norm()) > 1.5 > float((x - z[:1]).norm())
    landing = run(x, Shields.images(z), 1.5, Pixels())
    d = (measured(landing.sample) - z.flatten(1).double()).norm(dim=1)
    assert float(d.min()) >= 1.5 * (1 - TOLERANCE)
    assert landing.nearest[0].clear


def test_what_the_box_cannot_hold_is_reported():
    z = torch.zeros(1, 3, 2, 2)
    landing = run(z + 0.01, Shields.images(z), 2 * math.sqrt(12), Pixels())
    assert not landing.nearest[0].clear
    assert landing.sample.isfinite().all()
    assert landing.nearest[0].distance == pytest.approx(math.sqrt(12), rel=1e-3)


def test_measuring_only_moves_nothing():
    x = torch.zeros(3, 1, 4, 4)
    landing = run(x, Shields.batch(), 1.0, move=False)
    assert torch.equal(landing.sample, x)
    assert [nearest.clear for nearest in landing.nearest] == [False] * 3


def test_equal_images_are_pulled_apart():
    x = torch.ones(5, 3, 8, 8)
    landing = run(x, Shields.batch(), 3.0)
    assert float(pairs(landing.sample).min()) >= 3.0 * (1 - TOLERANCE)
    assert landing.moved.tolist() == [False, True, True, True, True]


def test_certificates_name_the_reference():
    z = torch.eye(4).reshape(4, 1, 2, 2) * 10
    shields = Shields.images(z, ids=["a", "b", "c", "d"]) + Shields.images(z + 0.5, radius=0.1)
    landing = run(z[2:3] + 1.0, shields, 1.0)
    nearest = landing.nearest[0]
    assert (nearest.source, nearest.reference, nearest.radius) == ("images", "c", 1.0)
    assert nearest.distance == pytest.approx(2.0)
    empty = run(z, Shields.history(radius=1.0), None)
    assert [n.source for n in empty.nearest] == ["none"] * 4
    assert all(n.clear for n in empty.nearest)


def test_groups_do_not_see_each_other():
    x = torch.ones(4, 1, 4, 4)
    landing = run(x, Shields.batch(), 3.0, groups=("a", "b", "a", "b"))
    assert landing.moved.tolist() == [False, False, True, True]


def test_large_sets_are_searched_exactly():
    """The float32 bound of a large set leaves nothing out: same result as a small one."""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(600, 1, 8, 8, generator=generator)
    x = z[:4] + 0.1 * torch.randn(4, 1, 8, 8, generator=generator)
    landing = run(x, Shields.images(z), 9.0)
    d = torch.cdist(landing.sample.flatten(1).double(), z.flatten(1).double())
    assert float(d.min()) >= 9.0 * (1 - TOLERANCE)
    assert landing.moved.all()


@some
@given(st.integers(0, 10_000), st.sampled_from([1.0, 1e2, 1e4]))
def test_the_float32_bound_never_drops_a_reference(seed, scale):
    """Far from the origin float32 distances are noise; what is near must still come through."""
    generator = torch.Generator().manual_seed(seed)
    x = scale + torch.randn(3, 192, generator=generator, dtype=torch.float64)
    u = torch.randn(300, 192, generator=generator, dtype=torch.float64)
    u = u / u.norm(dim=1, keepdim=True)
    z = (x[torch.arange(300) % 3] + 5.0 * u).float()
    near = torch.cdist(x, z.double(), compute_mode="donot_use_mm_for_euclid_dist").amin(0) <= 5.0
    assert bool(within(x, Rough.of(z), 5.0)[near].all())
    far = x[:1].float() + 100 * scale
    assert not bool(within(x, Rough.of(far), 5.0).any())


def test_a_large_set_moves_as_small_ones_do():
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(600, 1, 8, 8, generator=generator)
    x = z[::100] + 0.1 * torch.randn(6, 1, 8, 8, generator=generator)
    small = [Shields.images(part) for part in z.split(200)]
    one = Spell(Shields.images(z), radius=9.0).correct(x)
    three = Spell(small[0] + small[1] + small[2], radius=9.0).correct(x)
    assert torch.allclose(one, three, atol=1e-4)
    assert float(torch.cdist(one.flatten(1), z.flatten(1)).min()) >= 9.0 * (1 - 1e-4)


def test_a_large_set_is_asked_again_for_what_the_move_may_enter():
    """Leaving one shield leads straight into another, which the first search had left out."""
    u = torch.zeros(1, 64)
    u[0, 0] = 1.0
    far = 500 + torch.randn(400, 64, generator=torch.Generator().manual_seed(5))
    z = torch.cat([far, torch.zeros(1, 64), 1.8 * 5.0 * u])
    y = Spell(Shields.images(z), radius=5.0).correct(0.01 * u + 1e-3 * u.flip(1))
    assert float(torch.cdist(y, z).min()) >= 5.0 * (1 - 1e-4)


def test_two_batch_shields_with_radii_of_their_own():
    """The larger radius rules, and each image still leaves only those that landed before it."""
    x = torch.ones(4, 3, 8, 8)
    both = run(x, Shields.batch(radius=2.0) + Shields.batch(radius=5.0), None)
    assert float(pairs(both.sample).min()) >= 5.0 * (1 - TOLERANCE)
    assert all(nearest.clear for nearest in both.nearest)
    assert both.moved.tolist() == [False, True, True, True]
    alone = run(x, Shields.batch(radius=5.0), None)
    assert torch.equal(both.sample, alone.sample)


def test_landing_asks_a_large_set_again_for_what_the_move_may_enter():
    """The exit of one shield leads into another, which a search around the image leaves out."""
    u = torch.zeros(64)
    u[0] = 1.0
    far = 500 + torch.randn(400, 64, generator=torch.Generator().manual_seed(5))
    z = torch.cat([far, torch.zeros(1, 64), 1.8 * 5.0 * u[None]]).reshape(-1, 1, 8, 8)
    x = (0.01 * u + 1e-3 * u.flip(0)).reshape(1, 1, 8, 8)
    landing = run(x, Shields.images(z), 5.0)
    assert float(torch.cdist(landing.sample.flatten(1), z.flatten(1)).min()) >= 5.0 * (1 - 1e-5)


def test_an_image_with_little_left_of_itself_is_told_of():
    x = torch.full((8, 3, 4, 4), 0.5)
    x += 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    far = Spell(Shields.batch(), radius=8.0, space=Pixels()).denoiser(lambda x, sigma: x)
    with pytest.warns(ShieldedWarning, match=r"of 8 finished images .* smaller radius"):
        images = far.finish(x)
    assert float(torch.pdist(measured(images)).min()) >= 8.0 * (1 - TOLERANCE)
    x = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    near = Spell(Shields.batch(), radius=2.5, space=Pixels()).denoiser(lambda x, sigma: x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not torch.equal(near.finish(x), x)
