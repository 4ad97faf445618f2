# SPDX-License-Identifier: Apache-2.0
"""Spaces: which one a pipeline works in, what the user gets, and pictures as latents."""

from typing import ClassVar

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from families import FAMILIES
from shielded.errors import BadInput
from shielded.spaces import Latent, Pixels, encode, space_of


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_pixel_pipelines_are_told_from_latent_ones(name):
    family = FAMILIES[name]()
    assert isinstance(space_of(family.pipe), Pixels if family.rgb else Latent)


def test_pixels_are_measured_as_the_user_gets_them():
    x = torch.linspace(-1.5, 1.5, 3 * 16 * 16).reshape(1, 3, 16, 16)
    (image,) = diffusers.image_processor.VaeImageProcessor().postprocess(x, output_type="pil")
    expected = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None].double() / 127.5 - 1
    assert torch.equal(Pixels().measure(x), expected)
    again = Pixels().measure(Pixels().measure(x).float())
    assert torch.equal(again, expected), "an image on the grid stays where it is"


def picture(size, mode="RGB"):
    rng = np.random.default_rng(0)
    channels = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    return Image.fromarray(rng.integers(0, 256, (*size, *channels), dtype=np.uint8), mode)


def test_latents_of_stable_diffusion_are_those_of_its_img2img():
    """scaling_factor * mode, at the size of the pipeline's latents."""
    pipe = FAMILIES["stable_diffusion"]().pipe
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    image = picture((size, size))
    got = encode(pipe, [image])
    x = pipe.image_processor.preprocess(image)
    expected = pipe.vae.encode(x).latent_dist.mode() * pipe.vae.config.scaling_factor
    assert got.shape == (1, pipe.unet.config.in_channels, *[pipe.unet.config.sample_size] * 2)
    assert torch.allclose(got, expected, atol=1e-5)


def test_latents_of_flux_are_shifted_scaled_and_packed():
    pipe = FAMILIES["flux"]().pipe
    image = picture((32, 32))
    got = encode(pipe, [image, image], 32, 32)
    x = pipe.image_processor.preprocess(image)
    config = pipe.vae.config
    z = (pipe.vae.encode(x).latent_dist.mode() - config.shift_factor) * config.scaling_factor
    packed = pipe._pack_latents(z, *z.shape)
    assert torch.allclose(got, packed.expand(2, -1, -1), atol=1e-5)


def test_pictures_of_other_modes_and_sizes():
    class Pixel:
        components: ClassVar = {"unet": object()}
        default_sample_size = 8

    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert torch.equal(encode(Pixel(), [clear]), torch.ones(1, 3, 8, 8)), "transparent is white"
    for mode in ("L", "RGBA"):
        assert encode(Pixel(), [picture((20, 11), mode)]).shape == (1, 3, 8, 8)


def test_what_cannot_be_encoded_is_named():
    pipe = FAMILIES["wan"]().pipe
    with pytest.raises(BadInput, match=r"Shields\.images"):
        encode(pipe, [picture((16, 16))], 16, 16)
    with pytest.raises(BadInput, match="no images"):
        encode(pipe, [])

    class NoSize:
        components: ClassVar = {"unet": object()}

    with pytest.raises(BadInput, match="height and width"):
        encode(NoSize(), [picture((8, 8))])
