# SPDX-License-Identifier: Apache-2.0
"""Tiny random instances of real diffusers pipelines, one builder a family, all offline.

    family = FAMILIES["flux"]()
    images = family.run(seed=0)                      # (B, ...) float tensor
    latents = family.run(seed=0, latents=True)       # what the last scheduler step returned

Weights come from seed 0, run on the CPU in float32, and mean nothing: what matters is the path
that latents take from the noise through the pipeline's own loop to its output.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

import tiny
from tiny import DIM

PROMPT = ["a dog", "two cats"]
SIZE = {"height": 16, "width": 16}


@dataclass(frozen=True)
class Family:
    """One tiny pipeline and the arguments of its call (without generator).

    `images` and `steps` are what a call makes and how many sampling calls it takes at least.
    `latent_type` is the `output_type` that returns the sampler's own latents, None where the
    pipeline has none. `rgb` works on pixels; `blends` mixes the latents with given ones after
    each step.
    """

    name: str
    pipe: Any
    call: dict[str, Any]
    images: int = 2
    steps: int = 3
    latent_type: str | None = "latent"
    output: str = "images"
    rgb: bool = False
    video: bool = False
    blends: bool = False
    modular: bool = False

    def run(self, seed: int = 0, latents: bool = False, **call) -> torch.Tensor:
        """Call the pipeline: its images, or with `latents` what the last step returned."""
        call = self.call | call | {"generator": torch.Generator().manual_seed(seed)}
        if latents and self.latent_type is None:
            raise ValueError(f"{self.name} cannot return its latents")
        kind = self.latent_type if latents else "np"
        if self.modular:
            return as_tensor(self.pipe(**call, output_type=kind, output=self.output))
        return as_tensor(getattr(self.pipe(**call, output_type=kind), self.output))


def as_tensor(images: Any) -> torch.Tensor:
    """A pipeline's output, whatever its type, as one tensor with the batch in front."""
    return images if torch.is_tensor(images) else torch.from_numpy(np.asarray(images))


FAMILIES: dict[str, Callable[[], Family]] = {}


def family(build: Callable[[], tuple[Any, dict] | tuple[Any, dict, dict]]):
    """Register a builder of (pipe, call, extras) that makes a ready Family of it."""

    @wraps(build)
    def built() -> Family:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe, call, *extras = build()
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        _silence(pipe)
        return Family(build.__name__, pipe, call, **(extras[0] if extras else {}))

    FAMILIES[build.__name__] = built
    return built


def _silence(part: Any) -> None:
    """Turn off the progress bars; a modular pipeline's are on blocks of any depth."""
    if hasattr(part, "set_progress_bar_config"):
        part.set_progress_bar_config(disable=True)
    blocks = getattr(part, "_blocks", part)  # the public property hands out copies
    for block in getattr(blocks, "sub_blocks", {}).values():
        _silence(block)


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


def _stable_diffusion_noise(name: str = "DDIMScheduler", **config):
    """A scheduler with the noise schedule of Stable Diffusion."""
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return getattr(diffusers, name)(**(schedule | config))


@family
def stable_diffusion():
    """Latent U-Net, CLIP, guidance in one doubled call; PNDM, the scheduler it ships with."""
    scheduler = _stable_diffusion_noise("PNDMScheduler", skip_prk_steps=True, steps_offset=1)
    pipe = diffusers.StableDiffusionPipeline(**_clip_parts(), scheduler=scheduler)
    return pipe, {"prompt": PROMPT, "num_inference_steps": 4}, {"steps": 4}


@family
def stable_diffusion_img2img():
    """Starts from a noised image, part of the way down."""
    scheduler = _stable_diffusion_noise(clip_sample=False, steps_offset=1)
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**_clip_parts(), scheduler=scheduler)
    call = {"prompt": PROMPT, "image": [_picture()] * 2, "strength": 0.8}
    return pipe, call | {"num_inference_steps": 4}


@family
def stable_diffusion_inpaint():
    """A 4-channel U-Net: the known half is blended into the latents after each step."""
    scheduler = _stable_diffusion_noise(clip_sample=False, steps_offset=1)
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
        scheduler=_stable_diffusion_noise("LCMScheduler"),
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
        "scheduler": _stable_diffusion_noise("EulerDiscreteScheduler", steps_offset=1),
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


def _shifting_flow():
    """Flow matching whose shift depends on the image size, as FLUX and its kin ship it."""
    return diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


@family
def flux():
    """Packed 2 x 2 latents, distilled guidance."""
    pipe = diffusers.FluxPipeline(
        scheduler=_shifting_flow(),
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
        scheduler=_stable_diffusion_noise(clip_sample=False),
    )
    call = {"prompt": PROMPT, "num_inference_steps": 3, "height": 64, "width": 64}
    return pipe, call | {"guidance_scale": 4.0}, {"latent_type": None}


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
def qwen_image():
    """Packed latents of a video VAE, guidance with a rescaled norm."""
    pipe = diffusers.QwenImagePipeline(
        scheduler=_shifting_flow(),
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
        scheduler=_shifting_flow(),
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


@family
def cogvideox():
    """Videos with frames in front of the channels; a v-prediction DDIM of its own."""
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
        scheduler=diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        ),
    )
    call = {"prompt": PROMPT, "num_frames": 5, "num_inference_steps": 3, "max_sequence_length": 16}
    return pipe, call | SIZE, {"output": "frames", "video": True}


@family
def ltx():
    """Videos packed to one token a voxel, normalised latents."""
    pipe = diffusers.LTXPipeline(
        scheduler=_shifting_flow(),
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
        scheduler=_shifting_flow(),
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
