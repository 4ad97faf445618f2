# SPDX-License-Identifier: Apache-2.0
"""Pipelines of flow matching, in the line of Stable Diffusion 3 and FLUX."""

import diffusers

from pipelines import tiny
from pipelines.family import PROMPT, SIZE, family, shifting_flow
from pipelines.tiny import DIM


@family
def stable_diffusion_3():
    """Joint transformer, three text encoders, flow matching."""
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * DIM,
            caption_projection_dim=DIM,
            pooled_projection_dim=2 * DIM,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny.flow_vae(),
        text_encoder=tiny.clip_text(projection=True),
        tokenizer=tiny.clip_tokenizer(),
        text_encoder_2=tiny.clip_text(projection=True),
        tokenizer_2=tiny.clip_tokenizer(),
        text_encoder_3=tiny.t5_text(width=2 * DIM),  # the joined CLIP states are padded to it
        tokenizer_3=tiny.t5_tokenizer(),
    )
    call = {"prompt": PROMPT, "num_inference_steps": 3, "max_sequence_length": 16}
    return pipe, call | SIZE


@family
def flux():
    """Packed 2 x 2 latents, distilled guidance."""
    pipe = diffusers.FluxPipeline(
        scheduler=shifting_flow(),
        vae=tiny.flow_vae(),
        text_encoder=tiny.clip_text(),
        tokenizer=tiny.clip_tokenizer(),
        text_encoder_2=tiny.t5_text(),
        tokenizer_2=tiny.t5_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=DIM,
            pooled_projection_dim=DIM,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ),
    )
    call = {"prompt": PROMPT, "num_inference_steps": 3, "max_sequence_length": 16}
    return pipe, call | SIZE


@family
def qwen_image():
    """Packed latents of a video VAE, guidance with a rescaled norm."""
    pipe = diffusers.QwenImagePipeline(
        scheduler=shifting_flow(),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.0, 2.0, 1.5, 0.5],
        ),
        text_encoder=tiny.qwen_vision_text(),
        tokenizer=tiny.qwen_tokenizer(),
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=DIM,
            axes_dims_rope=(4, 6, 6),
        ),
    )
    call = {"prompt": PROMPT, "negative_prompt": ["", ""], "num_inference_steps": 3}
    return pipe, call | SIZE


@family
def z_image():
    """Single-stream transformer that takes lists of images and predicts the opposite sign."""
    tokenizer = tiny.qwen_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    pipe = diffusers.ZImagePipeline(
        scheduler=shifting_flow(),
        vae=tiny.flow_vae(),
        text_encoder=tiny.qwen_text(),
        tokenizer=tokenizer,
        transformer=diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=DIM,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=DIM,
            axes_dims=[4, 2, 2],
            axes_lens=[128, 16, 16],
        ),
    )
    call = {"prompt": PROMPT, "num_inference_steps": 3, "max_sequence_length": 16}
    return pipe, call | SIZE


@family
def lumina_2():
    """Guidance truncated and renormalised; flow with the opposite sign."""
    pipe = diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=DIM,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(128, 16, 16),
            cap_feat_dim=DIM,
        ),
        scheduler=shifting_flow(),
        vae=tiny.flow_vae(),  # the pipeline takes it that a VAE shrinks the sides by 8
        text_encoder=tiny.gemma_text(),
        tokenizer=tiny.gemma_tokenizer(),
    )
    call = {"prompt": PROMPT, "num_inference_steps": 3, "system_prompt": "draw"}
    return pipe, call | {"max_sequence_length": 48, "height": 64, "width": 64}


@family
def aura_flow():
    """Joint and single blocks, register tokens, flow matching."""
    pipe = diffusers.AuraFlowPipeline(
        tokenizer=tiny.t5_tokenizer(),
        text_encoder=tiny.t5_text(multilingual=True),
        vae=tiny.vae(),
        transformer=diffusers.AuraFlowTransformer2DModel(
            sample_size=8,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=DIM,
            caption_projection_dim=DIM,
            pos_embed_max_size=64,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    )
    call = {"prompt": PROMPT, "num_inference_steps": 3, "max_sequence_length": 16}
    return pipe, call | SIZE
