# SPDX-License-Identifier: Apache-2.0
"""The bundled models' pipeline: words in, small RGB pictures out, in pixel space.

B batch (prompts x images of each), T tokens of a prompt, C width of the text, p patch size
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from shielded.errors import BadInput

logger = logging.get_logger(__name__)

# Words that carry no picture: passed over in silence.
FILLERS = frozenset("a an the of with and in on some picture image sprite".split())


class TinyTextToImagePipeline(DiffusionPipeline):
    """Text to image by flow matching on pixels, with classifier-free guidance.

    `latents` are the pixels themselves, in [-1, 1] at the end: (B, 3, H, W).
    The U-Net sees them as patches of p x p pixels and predicts noise - image.
    """

    model_cpu_offload_seq = "text_encoder->unet"
    _callback_tensor_inputs = ("latents", "prompt_embeds", "pooled_prompt_embeds")

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        text_encoder: CLIPTextModel,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, unet=unet, scheduler=scheduler
        )
        self.register_to_config(patch_size=patch_size)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_convert_rgb=True)

    @property
    def size(self) -> int:
        """Height and width of the pictures, in pixels."""
        return self.unet.config.sample_size * self.config["patch_size"]

    @property
    def default_sample_size(self) -> int:
        """`size`, by the name under which diffusers' pipelines state theirs."""
        return self.size

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the call that runs."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the call that runs asks the network twice."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """The number of sampling steps of the call that runs."""
        return self._num_timesteps

    @property
    def known_words(self) -> list[str]:
        """Every word that the model was trained on, sorted."""
        marks = set(self.tokenizer.all_special_tokens)
        return sorted(set(self.tokenizer.get_vocab()) - marks)

    def unknown_words(self, prompt: str | list[str]) -> dict[str, list[str]]:
        """Each word that the model does not know, with up to three known ones spelt like it."""
        text = prompt if isinstance(prompt, str) else " ".join(prompt)
        known = self.known_words
        words = [w for w in dict.fromkeys(_words(text)) if w not in known and w not in FILLERS]
        return {w: difflib.get_close_matches(w, known, n=3, cutoff=0.5) for w in words}

    def encode_prompt(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Word states (B, T, C) and pooled text (B, C); unknown words are left out."""
        known = set(self.known_words)
        kept = [" ".join(w for w in _words(p) if w in known) for p in prompts]
        ids = self.tokenizer(
            kept,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids.to(self._execution_device)
        told = self.text_encoder(ids)
        dtype = self.unet.dtype
        return told.last_hidden_state.to(dtype), told.pooler_output.to(dtype)

    def prepare_latents(
        self,
        count: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
    ) -> torch.Tensor:
        """The starting noise (B, 3, H, W): given, or drawn, one generator an image if a list."""
        shape = (count, 3, self.size, self.size)
        device, dtype = self._execution_device, self.unet.dtype
        if isinstance(generator, list) and len(generator) != count:
            raise BadInput(
                f"{len(generator)} generators for {count} images: give one, or one an image."
            )
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif tuple(latents.shape) != shape:
            raise BadInput(f"latents have shape {tuple(latents.shape)}; give {shape}.")
        latents = latents.to(device=device, dtype=dtype)
        return latents * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def predict(
        self, latents: torch.Tensor, t: torch.Tensor, embeds: torch.Tensor, pooled: torch.Tensor
    ) -> torch.Tensor:
        """noise - image, the shape of latents; guided where embeds has 2 B rows, negative first."""
        guided = len(embeds) > len(latents)
        x = torch.cat([latents, latents]) if guided else latents
        scale = getattr(self.scheduler, "scale_model_input", None)
        x = scale(x, t) if scale else x
        patch = self.config["patch_size"]
        out = self.unet(
            pixel_unshuffle(x, patch),
            t,
            encoder_hidden_states=embeds,
            class_labels=pooled,
            return_dict=False,
        )[0]
        out = pixel_shuffle(out, patch)
        if guided:
            plain, told = out.chunk(2)
            out = plain + self._guidance_scale * (told - plain)
        return out

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """Pictures of the prompt, those of one prompt next to each other.

        Args:
            prompt: everyday words, such as "red potion"; "" draws anything.
            height, width: the model's own size, or None.
            num_inference_steps: sampling steps.
            guidance_scale: how strongly the prompt is followed; at most 1 switches guidance off.
            negative_prompt: what to steer away from, one for all or one a prompt.
            num_images_per_prompt: pictures of each prompt.
            generator: source of the noise, one for all or one an image.
            latents: starting noise (B, 3, H, W) instead of drawn noise.
            output_type: "pil", "np", "pt", or "latent": the last latents as they are.
            return_dict: an `ImagePipelineOutput`, or a plain tuple.
            callback_on_step_end: called as (pipe, step, t, tensors) after each step; may return
                tensors to go on with.
            callback_on_step_end_tensor_inputs: which tensors it gets.

        Raises:
            BadInput: sizes, counts or names that do not fit; the message says what does.
        """
        names = tuple(callback_on_step_end_tensor_inputs)
        prompts, negatives = self._check(prompt, negative_prompt, height, width, output_type, names)
        if num_inference_steps < 1 or num_images_per_prompt < 1:
            raise BadInput("num_inference_steps and num_images_per_prompt must be 1 or more.")
        self._warn(prompts + negatives)
        self._guidance_scale = guidance_scale
        each = num_images_per_prompt
        both = (negatives, prompts) if self.do_classifier_free_guidance else (prompts,)
        told = [self.encode_prompt([p for p in side for _ in range(each)]) for side in both]
        embeds, pooled = torch.cat([e for e, _ in told]), torch.cat([p for _, p in told])
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        latents = self.prepare_latents(len(prompts) * each, generator, latents)
        latents = self._sample(latents, embeds, pooled, generator, callback_on_step_end, names)
        images = self._finish(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _sample(self, latents, embeds, pooled, generator, callback, names) -> torch.Tensor:
        takes = inspect.signature(self.scheduler.step).parameters
        extra = {"generator": generator} if "generator" in takes else {}
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=len(timesteps)) as bar:  # pyright: ignore[reportCallIssue]
            for i, t in enumerate(timesteps):
                out = self.predict(latents, t, embeds, pooled)
                latents = self.scheduler.step(out, t, latents, return_dict=False, **extra)[0]
                if callback is not None:
                    at_hand = {
                        "latents": latents,
                        "prompt_embeds": embeds,
                        "pooled_prompt_embeds": pooled,
                    }
                    at_hand |= callback(self, i, t, {k: at_hand[k] for k in names}) or {}
                    latents, embeds = at_hand["latents"], at_hand["prompt_embeds"]
                    pooled = at_hand["pooled_prompt_embeds"]
                bar.update()
        return latents

    def _finish(self, latents: torch.Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return latents
        return self.image_processor.postprocess(latents, output_type=output_type)

    def _check(
        self, prompt, negative_prompt, height, width, output_type, names
    ) -> tuple[list[str], list[str]]:
        if any(side not in (None, self.size) for side in (height, width)):
            raise BadInput(
                f"This model draws {self.size} x {self.size} pixels: leave the size out."
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise BadInput(f"output_type is {output_type!r}; give 'pil', 'np', 'pt' or 'latent'.")
        strange = [n for n in names if n not in self._callback_tensor_inputs]
        if strange:
            raise BadInput(f"No tensor {strange[0]!r}; there are {self._callback_tensor_inputs}.")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
        if not prompts or not all(isinstance(p, str) for p in prompts):
            raise BadInput("prompt must be a string, or a list of strings that is not empty.")
        negatives = negative_prompt or ""
        negatives = [negatives] * len(prompts) if isinstance(negatives, str) else list(negatives)
        if len(negatives) != len(prompts):
            raise BadInput(f"{len(negatives)} negative prompts for {len(prompts)} prompts.")
        return prompts, negatives

    def _warn(self, prompts: list[str]) -> None:
        for word, near in self.unknown_words(prompts).items():
            hint = f"; nearest known: {', '.join(near)}" if near else ""
            logger.warning(f"The model does not know the word {word!r} and ignores it{hint}.")
        room = self.tokenizer.model_max_length - 2
        for prompt in prompts:
            if len([w for w in _words(prompt) if w not in FILLERS]) > room:
                logger.warning(f"Only the first {room} known words of {prompt!r} are read.")
        flows = any(c.__name__.startswith("FlowMatch") for c in type(self.scheduler).__mro__)
        flows = flows or self.scheduler.config.get("use_flow_sigmas", False)
        if not flows:
            logger.warning(
                f"{type(self.scheduler).__name__} does not sample flow models as it is set: use a "
                "FlowMatch scheduler, or one made with use_flow_sigmas=True and "
                "prediction_type='flow_prediction'."
            )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
