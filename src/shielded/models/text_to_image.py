# SPDX-License-Identifier: Apache-2.0
"""The pipeline of tiny-sprites: words in, small coloured pictures out.

B batch (prompts x images of each), T tokens of a prompt, C width of the text
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any

import torch
from diffusers import ImagePipelineOutput, UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Generator, Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from shielded.errors import BadInput
from shielded.models import loop  # not its class: diffusers wants one pipeline in a file
from shielded.models.loop import logger

# Words that carry no picture: passed over in silence.
FILLERS = frozenset("a an the of with and in on some picture image sprite".split())


class TinyTextToImagePipeline(loop.FlowPipeline):
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
        self._set_up(
            patch_size,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            unet=unet,
            scheduler=scheduler,
        )

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

    def encode_prompt(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
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
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
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
        names, each = tuple(callback_on_step_end_tensor_inputs), num_images_per_prompt
        self._check_call((height, width), output_type, names, num_inference_steps, each)
        prompts, negatives = _sides(prompt, negative_prompt)
        self._warn(prompts + negatives)
        self._guidance_scale = guidance_scale
        both = (negatives, prompts) if self.do_classifier_free_guidance else (prompts,)
        parts = [self.encode_prompt([p for p in side for _ in range(each)]) for side in both]
        told = {
            "prompt_embeds": torch.cat([states for states, _ in parts]),
            "pooled_prompt_embeds": torch.cat([pooled for _, pooled in parts]),
        }
        count = len(prompts) * each
        last = self._draw(
            told, count, num_inference_steps, generator, latents, callback_on_step_end, names
        )
        return self._finish(last, output_type, return_dict)

    def _ask(self, x: Tensor, t: Tensor, told: dict[str, Tensor]) -> Tensor:
        return self.unet(
            x,
            t,
            encoder_hidden_states=told["prompt_embeds"],
            class_labels=told["pooled_prompt_embeds"],
            return_dict=False,
        )[0]

    def _warn(self, prompts: list[str]) -> None:
        for word, near in self.unknown_words(prompts).items():
            hint = f"; nearest known: {', '.join(near)}" if near else ""
            logger.warning(f"The model does not know the word {word!r} and ignores it{hint}.")
        room = self.tokenizer.model_max_length - 2
        for prompt in prompts:
            if len([w for w in _words(prompt) if w not in FILLERS]) > room:
                logger.warning(f"Only the first {room} known words of {prompt!r} are read.")


def _sides(prompt: Any, negative_prompt: Any) -> tuple[list[str], list[str]]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise BadInput("prompt must be a string, or a list of strings that is not empty.")
    negatives = negative_prompt or ""
    negatives = [negatives] * len(prompts) if isinstance(negatives, str) else list(negatives)
    if len(negatives) != len(prompts):
        raise BadInput(f"{len(negatives)} negative prompts for {len(prompts)} prompts.")
    return prompts, negatives


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
