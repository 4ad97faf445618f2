# SPDX-License-Identifier: Apache-2.0
"""Spaces: which one a pipeline works in, and what the user gets."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from families import FAMILIES
from shielded.spaces import Latent, Pixels, space_of


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_pixel_pipelines_are_told_from_latent_ones(name):
    family = FAMILIES[name]()
    assert isinstance(space_of(family.pipe), Pixels if family.rgb else Latent)


def test_pixels_are_measured_as_the_user_gets_them():
    x = torch.linspace(-1.5, 1.5, 3 * 16 * 16).reshape(1, 3, 16, 16)
    images: Any = diffusers.image_processor.VaeImageProcessor().postprocess(x, output_type="pil")
    expected = torch.from_numpy(np.array(images[0])).permute(2, 0, 1)[None].double() / 127.5 - 1
    assert torch.equal(Pixels().measure(x), expected)
    again = Pixels().measure(Pixels().measure(x).float())
    assert torch.equal(again, expected), "an image on the grid stays where it is"
