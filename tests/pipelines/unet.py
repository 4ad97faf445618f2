# SPDX-License-Identifier: Apache-2.0
"""Pipelines around a cross-attention U-Net."""

import diffusers
import numpy as np
import torch
from PIL import Image

from pipelines import tiny
from pipelines.family import PROMPT, SIZE, family, sd_noise
from pipelines.tiny import DIM


def _clip_parts(unet: dict | None = None) -> dict:
    """The parts that all Stable Diffusion 1 pipelines share."""
    return {
        "vae": tiny.vae(),
        "text_encoder": tiny.clip_text(),
        "tokenizer": tiny.clip_tokenizer(),
        "unet": tiny.unet(**(unet or {})),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


@family
def stable_diffusion():
    """Latent U-Net, CLIP, guidance in one doubled call; PNDM, the scheduler it ships with."""
    scheduler = sd_noise("PNDMScheduler", skip_prk_steps=True, steps_offset=1)
    pipe = diffusers.StableDiffusionPipeline(**_clip_parts(), scheduler=scheduler)
    return pipe, {"prompt": PROMPT, "num_inference_steps": 4}, {"steps": 4}


@family
def stable_diffusion_img2img():
    """Starts from a noised image, part of the way down; PNDM counts its calls from there."""
    scheduler = sd_noise("PNDMScheduler", skip_prk_steps=True, steps_offset=1)
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**_clip_parts(), scheduler=scheduler)
    call = {"prompt": PROMPT, "image": [_picture()] * 2, "strength": 0.8}
    return pipe, call | {"num_inference_steps": 4}


@family
def stable_diffusion_inpaint():
    """A 4-channel U-Net: the known half is blended into the latents after each step."""
    scheduler = sd_noise(clip_sample=False, steps_offset=1)
    pipe = diffusers.StableDiffusionInpaintPipeline(**_clip_parts(), scheduler=scheduler)
    mask = Image.fromarray(np.repeat([[0] * 8 + [255] * 8], 16, axis=0).astype(np.uint8))
    call = {"prompt": PROMPT, "image": _picture(), "mask_image": mask, "num_inference_steps": 3}
    return pipe, call | SIZE, {"blends": True}


def _picture() -> Image.Image:
    """A 16 x 16 picture of fixed noise."""
    noise = torch.randint(256, (16, 16, 3), generator=torch.Generator().manual_seed(1))
    return Image.fromarray(noise.numpy().astype(np.uint8))


@family
def latent_consistency():
    """Few steps with fresh noise between them; the guidance scale is an input of the U-Net."""
    pipe = diffusers.LatentConsistencyModelPipeline(
        **_clip_parts({"time_cond_proj_dim": DIM}),
        scheduler=sd_noise("LCMScheduler"),
    )
    return pipe, {"prompt": PROMPT, "num_inference_steps": 4}, {"steps": 4}


def _sdxl_parts() -> dict:
    return {
        "vae": tiny.vae(),
        "text_encoder": tiny.clip_text(),
        "text_encoder_2": tiny.clip_text(projection=True),
        "tokenizer": tiny.clip_tokenizer(),
        "tokenizer_2": tiny.clip_tokenizer(),
        "unet": tiny.unet(
            cross_attention_dim=2 * DIM,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + DIM,
            use_linear_projection=True,
        ),
        "scheduler": sd_noise("EulerDiscreteScheduler", steps_offset=1),
    }


@family
def stable_diffusion_xl():
    """Two text encoders and time ids, Euler."""
    pipe = diffusers.StableDiffusionXLPipeline(**_sdxl_parts(), add_watermarker=False)
    return pipe, {"prompt": PROMPT, "num_inference_steps": 3} | SIZE


@family
def modular_sdxl():
    """The modular SDXL, assembled from blocks; its loop reads `components.scheduler`."""
    from diffusers.modular_pipelines import stable_diffusion_xl as blocks

    pipe = blocks.StableDiffusionXLAutoBlocks().init_pipeline()
    pipe.update_components(**_sdxl_parts())
    return pipe, {"prompt": PROMPT, "num_inference_steps": 3} | SIZE, {"modular": True}


@family
def ldm_text_to_image():
    """The first latent diffusion, with its own BERT."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
        LDMBertConfig,
        LDMBertModel,
    )

    bert = LDMBertConfig(
        vocab_size=256,
        d_model=DIM,
        encoder_layers=1,
        encoder_ffn_dim=DIM,
        encoder_attention_heads=2,
        head_dim=8,
    )
    pipe = diffusers.LDMTextToImagePipeline(
        vqvae=tiny.vae(),
        bert=LDMBertModel(bert),
        tokenizer=tiny.bert_tokenizer(),
        unet=tiny.unet(),
        scheduler=sd_noise(clip_sample=False),
    )
    call = {"prompt": PROMPT, "num_inference_steps": 3, "height": 64, "width": 64}
    return pipe, call | {"guidance_scale": 4.0}, {"latent_type": None}


@family
def kandinsky_decoder():
    """Decodes image embeddings; learned variance, MoVQ latents."""
    pipe = diffusers.KandinskyV22Pipeline(
        unet=tiny.learned_variance_unet(
            out_channels=8, encoder_hid_dim_type="image_proj", addition_embed_type="image"
        ),
        scheduler=diffusers.DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, clip_sample=False, variance_type="learned_range"
        ),
        movq=tiny.movq(),
    )
    call = {"image_embeds": torch.randn(2, DIM), "negative_image_embeds": torch.randn(2, DIM)}
    return pipe, call | {"num_inference_steps": 3} | SIZE
