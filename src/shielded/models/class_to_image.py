# SPDX-License-Identifier: Apache-2.0
"""The pipeline of tiny-fashion: a class in, small grey pictures out.

B batch (classes x images of each)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from diffusers import ImagePipelineOutput, UNet2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Generator, Tensor

from shielded.errors import BadInput
from shielded.models import loop  # not its class: diffusers wants one pipeline in a file

# Words of a prompt beside the class's name: passed over.
FILLERS = frozenset("a an the of some pair picture image photo".split())


class TinyClassToImagePipeline(loop.FlowPipeline):
    """Class to image by flow matching on pixels, with classifier-free guidance.

    `latents` are the pixels themselves, in [-1, 1] at the end: (B, 1, H, W). The U-Net sees them
    as patches of p x p pixels and predicts noise - image. Its last label stands for no class.
    `id2label` names the classes as that of `DiTPipeline` does: {"0": "T-shirt, top", ...}.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ("latents", "class_labels")

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        id2label: dict[str, str] | None = None,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self._set_up(patch_size, unet=unet, scheduler=scheduler)
        self.register_to_config(id2label=id2label)
        named = (id2label or {}).items()
        self.labels = {name.strip(): int(k) for k, names in named for name in names.split(",")}

    @property
    def no_class(self) -> int:
        """The label that stands for no class; those below it are the classes."""
        return self.unet.config.num_class_embeds - 1

    @property
    def class_names(self) -> list[str]:
        """One name for each class, in the order of the labels."""
        first: dict[int, str] = {}
        for name, label in self.labels.items():
            first.setdefault(label, name)
        return list(first.values())

    def get_label_ids(self, asked: str | int | list[str] | list[int] | Tensor) -> list[int]:
        """The labels of classes given by name or by label; "" is no class.

        "sneaker", "Sneakers" and "a picture of a sneaker" are one. Raises `BadInput`, naming the
        classes there are.
        """
        several = asked.tolist() if isinstance(asked, Tensor) else asked
        several = several if isinstance(several, (list, tuple)) else [several]
        return [self._label(one) for one in several]

    def _label(self, asked: Any) -> int:
        if isinstance(asked, int) and not isinstance(asked, bool):
            if 0 <= asked <= self.no_class:
                return asked
            raise BadInput(f"{asked} is no class: give a label from 0 to {self.no_class - 1}.")
        if not isinstance(asked, str):
            raise BadInput(f"{asked!r} is no class: give a name or a label.")
        known = {"": self.no_class} | {_plain(name): k for name, k in self.labels.items()}
        text = _plain(asked)
        for form in (text, text.removesuffix("s"), text.removesuffix("es")):
            if form in known and (form or not text):
                return known[form]
        raise BadInput(f"{asked!r} is no class: choose one of {', '.join(self.class_names)}.")

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        class_labels: str | int | list[str] | list[int] | Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 2.0,
        num_images_per_prompt: int = 1,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """Pictures of the classes, those of one class next to each other.

        Args:
            prompt: names of classes, such as "sneaker"; "" draws anything.
            class_labels: the same, as names or labels, instead of `prompt`.
            height, width: the model's own size, or None.
            num_inference_steps: sampling steps.
            guidance_scale: how strongly the class is followed; at most 1 switches guidance off.
            num_images_per_prompt: pictures of each class asked for.
            generator: source of the noise, one for all or one an image.
            latents: starting noise (B, 1, H, W) instead of drawn noise.
            output_type: "pil", "np", "pt", or "latent": the last latents as they are.
            return_dict: an `ImagePipelineOutput`, or a plain tuple.
            callback_on_step_end: called as (pipe, step, t, tensors) after each step; may return
                tensors to go on with.
            callback_on_step_end_tensor_inputs: which tensors it gets.

        Raises:
            BadInput: classes, sizes or counts that do not fit; the message says what does.
        """
        names, each = tuple(callback_on_step_end_tensor_inputs), num_images_per_prompt
        self._check_call((height, width), output_type, names, num_inference_steps, each)
        given = [g for g in (prompt, class_labels) if g is not None]
        if len(given) != 1:
            raise BadInput("Give either prompt or class_labels, such as 'sneaker'.")
        asked = self.get_label_ids(given[0])
        if not asked:
            raise BadInput("Ask for one class or more: the list is empty.")
        self._guidance_scale = guidance_scale
        rows = torch.tensor(asked, device=self._execution_device).repeat_interleave(each)
        count = len(rows)
        if self.do_classifier_free_guidance:
            rows = torch.cat([torch.full_like(rows, self.no_class), rows])
        last = self._draw(
            {"class_labels": rows},
            count,
            num_inference_steps,
            generator,
            latents,
            callback_on_step_end,
            names,
        )
        return self._finish(last, output_type, return_dict)

    def _ask(self, x: Tensor, t: Tensor, told: dict[str, Tensor]) -> Tensor:
        return self.unet(x, t, class_labels=told["class_labels"], return_dict=False)[0]


def _plain(name: str) -> str:
    """The letters and digits of a name alone, in lower case, without fillers."""
    return "".join(w for w in re.findall(r"[a-z0-9]+", name.lower()) if w not in FILLERS)
