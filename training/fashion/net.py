# SPDX-License-Identifier: Apache-2.0
"""The stock parts of the model: a U-Net that is told the class, and its scheduler."""

from __future__ import annotations

from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel

SIZE = 28
CLASSES = 10
NONE = CLASSES  # the label of no class at all, for classifier-free guidance

# name -> (patch, channels of each level, residual blocks a level, levels with attention)
SETUPS = {
    "patch2": dict(patch=2, channels=(96, 128), layers=1, attention=(1,)),
    "patch2-narrow": dict(patch=2, channels=(64, 128), layers=1, attention=(1,)),
    "pixel": dict(patch=1, channels=(32, 64, 128), layers=1, attention=(2,)),
}


def make_unet(
    patch: int, channels: tuple[int, ...], layers: int, attention: tuple[int, ...]
) -> UNet2DModel:
    """Self-attention at the levels named; the class joins the time."""
    depth = range(len(channels))
    return UNet2DModel(
        sample_size=SIZE // patch,
        in_channels=patch**2,
        out_channels=patch**2,
        down_block_types=tuple(
            "AttnDownBlock2D" if i in attention else "DownBlock2D" for i in depth
        ),
        up_block_types=tuple(
            "AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(depth)
        ),
        block_out_channels=channels,
        layers_per_block=layers,
        attention_head_dim=32,
        norm_num_groups=16,
        num_class_embeds=CLASSES + 1,
    )


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Straight paths from noise to image, no shift."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
