# SPDX-License-Identifier: Apache-2.0
"""Pipelines without a VAE, which sample RGB images."""

import diffusers

from pipelines import tiny
from pipelines.family import PROMPT, family


@family
def deepfloyd_if():
    """Pixels, six output channels: learned variance; dynamic thresholding in the scheduler."""
    pipe = diffusers.IFPipeline(
        tokenizer=tiny.t5_tokenizer(),
        text_encoder=tiny.t5_text(),
        unet=tiny.learned_variance_unet(
            in_channels=3,
            out_channels=6,
            encoder_hid_dim_type="text_proj",
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
        ),
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2",
            thresholding=True,
            dynamic_thresholding_ratio=0.95,
            sample_max_value=1.5,
            variance_type="learned_range",
        ),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    call = {"prompt": PROMPT, "num_inference_steps": 3, "clean_caption": False}
    return pipe, call, {"latent_type": "pt", "rgb": True}


@family
def ddpm():
    """Pixels, no condition, fresh noise at each step, clipped expected output."""
    pipe = diffusers.DDPMPipeline(tiny.pixel_unet(), diffusers.DDPMScheduler())
    call = {"batch_size": 3, "num_inference_steps": 4}
    return pipe, call, {"images": 3, "steps": 4, "latent_type": None, "rgb": True}


@family
def ddim():
    """Pixels, no condition, deterministic, clipped expected output."""
    pipe = diffusers.DDIMPipeline(tiny.pixel_unet(), diffusers.DDIMScheduler())
    call = {"batch_size": 3, "num_inference_steps": 4}
    return pipe, call, {"images": 3, "steps": 4, "latent_type": None, "rgb": True}


@family
def consistency_model():
    """Pixels in a few jumps on the schedule of EDM."""
    pipe = diffusers.ConsistencyModelPipeline(
        tiny.pixel_unet(num_class_embeds=10), diffusers.CMStochasticIterativeScheduler()
    )
    call = {"batch_size": 3, "class_labels": [1, 2, 3], "num_inference_steps": None}
    call |= {"timesteps": [22, 11, 0]}
    return pipe, call, {"images": 3, "latent_type": None, "rgb": True}
