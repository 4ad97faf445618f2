# SPDX-License-Identifier: Apache-2.0
"""Fingerprints: latents of the same space fit, others are told apart, and the difference named."""

import copy
import json

import diffusers
import pytest
import torch

from families import FAMILIES
from pictures import flux_2, pictures
from shielded.errors import BadInput
from shielded.spaces import encode, fingerprint, mismatch

BUILDERS = FAMILIES | {"flux_2": flux_2}


def told(a: dict, b: dict) -> str:
    """The mismatch, or nothing."""
    return mismatch(a, b) or ""


@pytest.mark.parametrize("name", sorted(set(BUILDERS) - {"lumina_2", "ldm_text_to_image"}))
def test_a_fingerprint_states_the_shape_and_survives_json(name) -> None:
    family = BUILDERS[name]()
    side = 8 if family.rgb else family.call.get("height", 16)
    stated = fingerprint(family.pipe, side, side)
    assert tuple(stated["shape"]) == encode(family.pipe, pictures(1, side), side, side).shape[1:]
    again = json.loads(json.dumps(stated))
    assert again == stated
    assert mismatch(again, fingerprint(BUILDERS[name]().pipe, side, side)) is None
    assert (stated["space"] == "pixels") == family.rgb
    wide = fingerprint(family.pipe, side, 2 * side)
    assert told(stated, wide).startswith(f"image size [{side}, {side}] against")


def test_pipelines_that_share_an_autoencoder_fit() -> None:
    """Text to image, image to image, the modular pipeline, and another model on the same VAE."""
    families = {name: FAMILIES[name]() for name in ("stable_diffusion", "stable_diffusion_xl")}
    one = families["stable_diffusion"].pipe
    xl = families["stable_diffusion_xl"].pipe
    xl.vae = one.vae
    other = diffusers.StableDiffusionImg2ImgPipeline(
        **one.components, requires_safety_checker=False
    )
    dit = FAMILIES["dit"]().pipe
    dit.vae = one.vae
    first = fingerprint(one, 16, 16)
    for pipe in (other, xl, dit):
        assert mismatch(first, fingerprint(pipe, 16, 16)) is None
    modular = FAMILIES["modular_sdxl"]().pipe
    modular.update_components(vae=one.vae)
    assert mismatch(first, fingerprint(modular, 16, 16)) is None


def changed(change) -> str:
    """The mismatch after a change to a Stable Diffusion pipeline."""
    pipe = FAMILIES["stable_diffusion"]().pipe
    before = fingerprint(pipe, 16, 16)
    change(pipe)
    after = fingerprint(pipe, 16, 16)
    assert (mismatch(before, after) is None) == (mismatch(after, before) is None)
    return told(before, after)


def test_what_makes_other_latents_does_not_fit() -> None:
    def scale(pipe):
        pipe.vae.register_to_config(scaling_factor=0.13025)

    def whiten(pipe):
        pipe.vae.register_to_config(latents_mean=[0.1, 0, 0, 0], latents_std=[1, 1, 1, 1.0])

    def nudge(pipe):
        pipe.vae.encoder.conv_in.bias.data[0] += 1e-6

    def smooth(pipe):
        pipe.vae.register_to_config(act_fn="relu")

    def swap(pipe):
        pipe.vae = diffusers.AutoencoderTiny(latent_channels=4, scaling_factor=0.18215)

    assert changed(scale) == "scaling 0.18215 against 0.13025"
    assert changed(whiten).startswith("shift 0.0 against [0.1, 0")
    assert changed(nudge).startswith("weights of the encoder")
    assert changed(smooth).startswith("configuration of the encoder")
    assert changed(swap).startswith("encoder AutoencoderKL against AutoencoderTiny")
    assert not changed(lambda pipe: None)


def test_packing_and_shift_count() -> None:
    """FLUX and Stable Diffusion 3 on one autoencoder: the same numbers in another order."""
    flux, sd3 = FAMILIES["flux"]().pipe, FAMILIES["stable_diffusion_3"]().pipe
    sd3.vae = flux.vae
    got = mismatch(fingerprint(flux, 16, 16), fingerprint(sd3, 16, 16))
    assert got == "packing 2 x 2 tokens against as is"
    before = fingerprint(flux, 16, 16)
    flux.vae.register_to_config(shift_factor=0.1)
    assert mismatch(before, fingerprint(flux, 16, 16)) == "shift 0.06 against 0.1"


def test_pixels_fit_pixels_and_no_latents() -> None:
    ddpm = fingerprint(FAMILIES["ddpm"]().pipe)
    assert mismatch(ddpm, fingerprint(FAMILIES["ddim"]().pipe)) is None
    latent = fingerprint(FAMILIES["stable_diffusion"]().pipe, 8, 8)
    assert mismatch(ddpm, latent) == "encoder none against AutoencoderKL"


def test_what_changes_no_latent_fits() -> None:
    """Another decoder, tiling and upcasting, and a setting that a later diffusers adds."""

    def tune(pipe):
        pipe.vae.decoder.conv_out.bias.data += 1
        pipe.vae.post_quant_conv.bias.data += 1
        pipe.vae.register_to_config(sample_size=512, force_upcast=False, _name_or_path="here")

    assert not changed(tune)
    pipe = FAMILIES["stable_diffusion"]().pipe
    before = fingerprint(pipe, 16, 16)
    del pipe.vae._internal_dict  # as a version wrote it that did not know two of the settings
    config = dict(FAMILIES["stable_diffusion"]().pipe.vae.config)
    known = {k: v for k, v in config.items() if k not in ("mid_block_add_attention", "act_fn")}
    pipe.vae.register_to_config(**known)
    assert "act_fn" not in pipe.vae.config
    assert mismatch(before, fingerprint(pipe, 16, 16)) is None


@pytest.mark.parametrize("name", ["stable_diffusion", "qwen_image", "ltx", "flux_2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_copy_in_another_precision_fits_and_another_model_does_not(name, dtype) -> None:
    pipe = BUILDERS[name]().pipe
    side = 32 if name == "ltx" else 16
    full = fingerprint(pipe, side, side)
    pipe.vae = copy.deepcopy(pipe.vae).to(dtype)
    low = fingerprint(pipe, side, side)
    assert low["weights"] != full["weights"]
    assert mismatch(full, low) is None
    assert mismatch(low, full) is None
    assert low["precision"] == str(dtype).removeprefix("torch.") != full["precision"] == "float32"
    pipe.vae.float()  # as a checkpoint in half precision is loaded by default
    assert mismatch(low | {"pipeline": "any"}, fingerprint(pipe, side, side)) is None
    assert fingerprint(pipe, side, side)["weights"] == low["weights"]
    pipe.vae.to(dtype)
    for weight in pipe.vae.encoder.parameters():  # a fine-tuned encoder
        weight.data *= 1.03
    assert told(full, fingerprint(pipe, side, side)).startswith("weights")


def test_an_empty_fingerprint_fits_everything() -> None:
    stated = fingerprint(FAMILIES["ddpm"]().pipe)
    assert mismatch({}, stated) is mismatch(stated, {}) is None


def test_a_later_format_does_not_fit() -> None:
    stated = fingerprint(FAMILIES["ddpm"]().pipe)
    assert told(stated, stated | {"format": 2}).startswith("version of the way in 1 against 2")


def test_weights_that_are_elsewhere_are_told() -> None:
    pipe = FAMILIES["stable_diffusion"]().pipe
    pipe.vae = pipe.vae.to("meta")
    with pytest.raises(BadInput, match="before enable_sequential_cpu_offload"):
        fingerprint(pipe, 16, 16)
