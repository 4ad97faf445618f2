# SPDX-License-Identifier: Apache-2.0
"""Pipelines that make videos."""

import diffusers

from pipelines import tiny
from pipelines.family import PROMPT, SIZE, family, shifting_flow
from pipelines.tiny import DIM


@family
def wan():
    """Two videos of five frames; UniPC in flow mode."""
    pipe = diffusers.WanPipeline(
        tokenizer=tiny.t5_tokenizer(),
        text_encoder=tiny.t5_text(multilingual=True),
        vae=diffusers.AutoencoderKLWan(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.0, 2.0, 1.5, 0.5],
            scale_factor_temporal=2,
            scale_factor_spatial=2,
        ),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=DIM,
            freq_dim=DIM,
            ffn_dim=DIM,
            num_layers=1,
        ),
    )
    call = {"prompt": PROMPT, "num_frames": 5, "num_inference_steps": 3, "max_sequence_length": 16}
    return pipe, call | SIZE, {"output": "frames", "video": True}


def _cogvideox(scheduler: str):
    """Videos with frames in front of the channels, v-prediction."""
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=tiny.t5_tokenizer(),
        text_encoder=tiny.t5_text(),
        vae=diffusers.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 2,
            up_block_types=("CogVideoXUpBlock3D",) * 2,
            block_out_channels=(8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=2,
        ),
        transformer=diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=DIM,
            num_layers=1,
            sample_width=8,
            sample_height=8,
            sample_frames=5,
            temporal_compression_ratio=2,
            max_text_seq_length=16,
        ),
        scheduler=getattr(diffusers, scheduler)(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        ),
    )
    call = {"prompt": PROMPT, "num_frames": 5, "num_inference_steps": 3, "max_sequence_length": 16}
    return pipe, call | SIZE, {"output": "frames", "video": True}


@family
def cogvideox():
    """CogVideoX with its DDIM."""
    return _cogvideox("CogVideoXDDIMScheduler")


@family
def cogvideox_dpm():
    """CogVideoX with its DPM solver, whose `step` takes the last x0 as its second argument."""
    return _cogvideox("CogVideoXDPMScheduler")


@family
def ltx():
    """Videos packed to one token a voxel, normalised latents."""
    pipe = diffusers.LTXPipeline(
        scheduler=shifting_flow(),
        vae=diffusers.AutoencoderKLLTXVideo(
            latent_channels=4,
            block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            down_block_types=("LTXVideoDownBlock3D",) * 2,
            layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            spatio_temporal_scaling=(True, False),
            decoder_spatio_temporal_scaling=(True, False),
            decoder_inject_noise=(False, False, False),
            patch_size=1,
        ),
        text_encoder=tiny.t5_text(),
        tokenizer=tiny.t5_tokenizer(),
        transformer=diffusers.LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=DIM,
            num_layers=1,
            caption_channels=DIM,
        ),
    )
    call = {"prompt": PROMPT, "num_frames": 5, "num_inference_steps": 3, "max_sequence_length": 16}
    call |= {"height": 32, "width": 32}
    return pipe, call, {"output": "frames", "video": True}
