# SPDX-License-Identifier: Apache-2.0
"""The stock parts of the model: a word tokenizer, a small CLIP text encoder, a U-Net."""

from __future__ import annotations

from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

SIZE = 32
WORDS_AT_MOST = 10  # tokens of a prompt, the start and end marks included
MARKS = ["<pad>", "<start>", "<unk>", "<end>"]  # CLIP treats an end mark of id 2 otherwise

# name -> (patch, channels of each level, residual blocks a level, levels with attention, heads)
SETUPS = {
    "patch2": dict(patch=2, channels=(64, 96, 96), layers=1, attention=(1, 2)),
    "patch2-wide": dict(patch=2, channels=(96, 112), layers=1, attention=(1,)),
    "pixel": dict(patch=1, channels=(32, 64, 112), layers=1, attention=(2,)),
}


def make_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """One token a word, lower case, other signs than letters split words."""
    vocab = {w: i for i, w in enumerate([*MARKS, *words])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
        model_max_length=WORDS_AT_MOST,
    )


def make_text_encoder(vocabulary_size: int, width: int = 128) -> CLIPTextModel:
    """Two causal transformer layers; the state of the end mark is the pooled text."""
    config = CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=WORDS_AT_MOST,
        projection_dim=width,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=3,
    )
    return CLIPTextModel(config)


def make_unet(
    patch: int, channels: tuple[int, ...], layers: int, attention: tuple[int, ...], width: int = 128
) -> UNet2DConditionModel:
    """Cross-attention to the words at the levels named; the pooled text joins the time."""
    depth = len(channels)
    down = ["CrossAttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(depth)]
    up = ["CrossAttnUpBlock2D" if i in attention else "UpBlock2D" for i in range(depth)]
    return UNet2DConditionModel(
        sample_size=SIZE // patch,
        in_channels=3 * patch**2,
        out_channels=3 * patch**2,
        down_block_types=tuple(down),
        up_block_types=tuple(reversed(up)),
        block_out_channels=channels,
        layers_per_block=layers,
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=16,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=width,
    )


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Straight paths from noise to image, no shift."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
