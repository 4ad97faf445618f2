# SPDX-License-Identifier: Apache-2.0
"""Pipelines around a transformer, with noise-predicting or multistep samplers."""

import diffusers

from pipelines import tiny
from pipelines.family import PROMPT, SIZE, family
from pipelines.tiny import DIM


@family
def pixart_alpha():
    """Transformer that predicts a variance too, chopped off before the multistep solver."""
    pipe = diffusers.PixArtAlphaPipeline(
        tokenizer=tiny.t5_tokenizer(),
        text_encoder=tiny.t5_text(),
        vae=tiny.vae(),
        transformer=diffusers.PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            cross_attention_dim=DIM,
            caption_channels=DIM,
            sample_size=8,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    call = {"prompt": PROMPT, "num_inference_steps": 4, "use_resolution_binning": False}
    call |= {"clean_caption": False, "max_sequence_length": 16}
    return pipe, call | SIZE, {"steps": 4}


@family
def dit():
    """Class labels; under guidance the scheduler gets the batch twice."""
    pipe = diffusers.DiTPipeline(
        transformer=diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            out_channels=8,
            num_layers=1,
            sample_size=8,
        ),
        vae=tiny.vae(),
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
    )
    return pipe, {"class_labels": [3, 7], "num_inference_steps": 3}, {"latent_type": None}


def _sana_transformer(**config):
    return diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=DIM,
        caption_channels=DIM,
        sample_size=8,
        **config,
    )


def _sana_call(steps: int) -> dict:
    call = {"prompt": PROMPT, "num_inference_steps": steps, "height": 32, "width": 32}
    return call | {
        "use_resolution_binning": False,
        "complex_human_instruction": None,
        "max_sequence_length": 16,
    }


@family
def sana():
    """Linear transformer on a deep-compression VAE; multistep solver in flow mode."""
    pipe = diffusers.SanaPipeline(
        tokenizer=tiny.gemma_tokenizer(),
        text_encoder=tiny.gemma_text(),
        vae=tiny.deep_vae(),
        transformer=_sana_transformer(),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )
    return pipe, _sana_call(3)


@family
def sana_sprint():
    """Two steps of a trigonometric flow; latents are in units of sigma_data."""
    pipe = diffusers.SanaSprintPipeline(
        tokenizer=tiny.gemma_tokenizer(),
        text_encoder=tiny.gemma_text(),
        vae=tiny.deep_vae(),
        transformer=_sana_transformer(guidance_embeds=True),
        scheduler=diffusers.SCMScheduler(),
    )
    return pipe, _sana_call(2), {"steps": 2}


@family
def hunyuan_dit():
    """Two text encoders, learned variance chopped, ancestral sampling."""
    pipe = diffusers.HunyuanDiTPipeline(
        vae=tiny.vae(),
        text_encoder=tiny.bert_text(),
        tokenizer=tiny.bert_tokenizer(),
        transformer=diffusers.HunyuanDiT2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            patch_size=2,
            sample_size=8,
            hidden_size=DIM,
            num_layers=2,
            cross_attention_dim=DIM,
            cross_attention_dim_t5=DIM,
            pooled_projection_dim=DIM,
        ),
        scheduler=diffusers.DDPMScheduler(
            prediction_type="v_prediction", clip_sample=False, beta_end=0.018
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=tiny.t5_text(),
        tokenizer_2=tiny.t5_tokenizer(),
    )
    call = {"prompt": PROMPT, "num_inference_steps": 3, "use_resolution_binning": False}
    return pipe, call | SIZE
