# SPDX-License-Identifier: Apache-2.0
"""What the bundled pipelines share: noise in, the sampling loop, small pictures out.

B batch (what is asked for x images of each), C channels of a picture, p patch size
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from shielded.errors import BadInput

logger = logging.get_logger("shielded.models")


class FlowPipeline(DiffusionPipeline):
    """Flow matching on pixels, with classifier-free guidance.

    `latents` are the pixels themselves, in [-1, 1] at the end: (B, C, H, W).
    The U-Net sees them as patches of p x p pixels and predicts noise - image.
    """

    unet: Any
    scheduler: Any
    _callback_tensor_inputs: tuple[str, ...] = ("latents",)

    def _set_up(self, patch_size: int, **parts: Any) -> None:
        """Register what a pipeline of this kind consists of."""
        self.register_modules(**parts)
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
    def image_channels(self) -> int:
        """1 for grey pictures, 3 for coloured ones."""
        return self.unet.config.in_channels // self.config["patch_size"] ** 2

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

    def prepare_latents(
        self, count: int, generator: Generator | list[Generator] | None, latents: Tensor | None
    ) -> Tensor:
        """The starting noise (B, C, H, W): given, or drawn, one generator an image if a list."""
        shape = (count, self.image_channels, self.size, self.size)
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

    def predict(self, latents: Tensor, t: Tensor, told: dict[str, Tensor]) -> Tensor:
        """noise - image, the shape of latents; guided where `told` has 2 B rows, negative first."""
        guided = len(next(iter(told.values()))) > len(latents)
        x = torch.cat([latents, latents]) if guided else latents
        scale = getattr(self.scheduler, "scale_model_input", None)
        x = scale(x, t) if scale else x
        patch = self.config["patch_size"]
        out = pixel_shuffle(self._ask(pixel_unshuffle(x, patch), t, told), patch)
        if guided:
            plain, out = out.chunk(2)
            out = plain + self._guidance_scale * (out - plain)
        return out

    def _ask(self, x: Tensor, t: Tensor, told: dict[str, Tensor]) -> Tensor:
        """The U-Net's output for patches x (2 B or B, p p C, H / p, W / p)."""
        raise NotImplementedError

    def _draw(
        self,
        told: dict[str, Tensor],
        count: int,
        steps: int,
        generator: Generator | list[Generator] | None,
        latents: Tensor | None,
        callback: Callable[..., dict[str, Any]] | None,
        names: tuple[str, ...],
    ) -> Tensor:
        """The last latents of `count` pictures that `told` asks for."""
        self.scheduler.set_timesteps(steps, device=self._execution_device)
        x = self.prepare_latents(count, generator, latents)
        takes = inspect.signature(self.scheduler.step).parameters
        extra = {"generator": generator} if "generator" in takes else {}
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=len(timesteps)) as bar:  # pyright: ignore
            for i, t in enumerate(timesteps):
                out = self.predict(x, t, told)
                x = self.scheduler.step(out, t, x, return_dict=False, **extra)[0]
                if callback is not None:
                    at_hand = {"latents": x, **told}
                    at_hand |= callback(self, i, t, {k: at_hand[k] for k in names}) or {}
                    x = at_hand["latents"]
                    told = {k: at_hand[k] for k in told}
                bar.update()
        return x

    def _finish(
        self, latents: Tensor, output_type: str, return_dict: bool
    ) -> ImagePipelineOutput | tuple:
        """The pictures in the form asked for."""
        images: Any = latents
        if output_type != "latent":
            images = self.image_processor.postprocess(latents, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _check_call(
        self,
        sides: tuple[int | None, int | None],
        output_type: str,
        names: Sequence[str],
        steps: int,
        each: int,
    ) -> None:
        """Refuse what no pipeline here can do; tell of a scheduler that does not fit."""
        if any(side not in (None, self.size) for side in sides):
            raise BadInput(
                f"This model draws {self.size} x {self.size} pixels: leave the size out."
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise BadInput(f"output_type is {output_type!r}; give 'pil', 'np', 'pt' or 'latent'.")
        strange = [n for n in names if n not in self._callback_tensor_inputs]
        if strange:
            raise BadInput(f"No tensor {strange[0]!r}; there are {self._callback_tensor_inputs}.")
        if steps < 1 or each < 1:
            raise BadInput("num_inference_steps and num_images_per_prompt must be 1 or more.")
        flows = any(c.__name__.startswith("FlowMatch") for c in type(self.scheduler).__mro__)
        flows = flows or self.scheduler.config.get("use_flow_sigmas", False)
        if not flows:
            logger.warning(
                f"{type(self.scheduler).__name__} does not sample flow models as it is set: use a "
                "FlowMatch scheduler, or one made with use_flow_sigmas=True and "
                "prediction_type='flow_prediction'."
            )
