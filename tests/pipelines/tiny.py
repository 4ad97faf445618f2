# SPDX-License-Identifier: Apache-2.0
"""Tiny random parts that the pipelines of `families` share: tokenizers, text encoders, VAEs.

Everything is built in memory. The tokenizers know single characters only, so no vocabulary
file is needed. All text encoders are `DIM` wide.
"""

import string

import transformers
from diffusers import AutoencoderDC, AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel

DIM = 16
CHARS = string.digits + string.ascii_letters + string.punctuation


def clip_tokenizer(length: int = 77) -> transformers.CLIPTokenizer:
    """Character tokenizer of the CLIP class."""
    words = ["<|startoftext|>", "<|endoftext|>", *CHARS, *(c + "</w>" for c in CHARS)]
    vocab = {word: i for i, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=length)


def t5_tokenizer() -> transformers.T5Tokenizer:
    """Character tokenizer of the T5 class."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((c, -1.0) for c in "▁" + CHARS)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0)


def gemma_tokenizer() -> transformers.GemmaTokenizer:
    """Character tokenizer of the Gemma class."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *CHARS]
    return transformers.GemmaTokenizer({word: i for i, word in enumerate(words)}, merges=[])


def qwen_tokenizer() -> transformers.Qwen2Tokenizer:
    """Byte tokenizer of the Qwen class; "Ġ" and "Ċ" are its space and its new line."""
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "Ġ", "Ċ", *CHARS]
    return transformers.Qwen2Tokenizer({word: i for i, word in enumerate(words)}, merges=[])


def bert_tokenizer() -> transformers.BertTokenizer:
    """Character tokenizer of the BERT class."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARS, *("##" + c for c in CHARS)]
    return transformers.BertTokenizer({word: i for i, word in enumerate(words)})


def _sizes(layers: int = 2) -> dict:
    return {
        "vocab_size": 256,
        "hidden_size": DIM,
        "intermediate_size": DIM,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
    }


def clip_text(projection: bool = False):
    """CLIP text encoder; with `projection` the class that also returns `text_embeds`."""
    config = transformers.CLIPTextConfig(
        **_sizes(), projection_dim=DIM, bos_token_id=0, eos_token_id=1, pad_token_id=1
    )
    name = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
    return getattr(transformers, name)(config)


def t5_text(multilingual: bool = False, width: int = DIM):
    """T5 encoder, or UMT5 with `multilingual`."""
    kind = "UMT5" if multilingual else "T5"
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=256, d_model=width, d_kv=8, d_ff=DIM, num_layers=1, num_heads=2
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


def gemma_text() -> transformers.Gemma2Model:
    """Gemma 2 language model."""
    config = transformers.Gemma2Config(**_sizes(), num_key_value_heads=1, head_dim=8)
    return transformers.Gemma2Model(config)


def qwen_text() -> transformers.Qwen3Model:
    """Qwen 3 language model."""
    config = transformers.Qwen3Config(**_sizes(), num_key_value_heads=1, head_dim=8)
    return transformers.Qwen3Model(config)


def qwen_vision_text() -> transformers.Qwen2_5_VLForConditionalGeneration:
    """Qwen 2.5 VL, of which the pipelines use the language part."""
    words = {"bos_token_id": 1, "eos_token_id": 0}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**_sizes(), **words, "num_key_value_heads": 2, "rope_parameters": rope},
        vision_config={
            "depth": 1,
            "hidden_size": DIM,
            "intermediate_size": DIM,
            "num_heads": 2,
            "out_hidden_size": DIM,
        },
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def bert_text() -> transformers.BertModel:
    """BERT encoder."""
    return transformers.BertModel(transformers.BertConfig(**_sizes(1)))


def vae(channels: int = 4, levels: int = 2, **config) -> AutoencoderKL:
    """AutoencoderKL that shrinks the sides by 2 ** (levels - 1)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        **config,
    )


def flow_vae(channels: int = 4) -> AutoencoderKL:
    """The VAE of SD3, FLUX and their kin: a shift, no quantisation convolutions."""
    return vae(
        channels,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5,
        shift_factor=0.06,
    )


def deep_vae() -> AutoencoderDC:
    """The deep-compression autoencoder of Sana; shrinks the sides by 4."""
    sizes = {
        f"{part}_{key}": value
        for part in ("encoder", "decoder")
        for key, value in {
            "block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
            "block_out_channels": (8, 8, 16),
            "layers_per_block": (1, 1, 1),
            "qkv_multiscales": ((), (), (5,)),
        }.items()
    }
    return AutoencoderDC(latent_channels=4, attention_head_dim=8, scaling_factor=0.41407, **sizes)


def movq() -> VQModel:
    """The MoVQ decoder of Kandinsky; shrinks the sides by 2."""
    return VQModel(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 32),  # its spatial norm has 32 groups, whatever the config says
        latent_channels=4,
        num_vq_embeddings=12,
        vq_embed_dim=4,
        norm_type="spatial",
    )


def unet(**config) -> UNet2DConditionModel:
    """Cross-attention U-Net on 4 x 8 x 8 latents."""
    base = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": DIM,
        "attention_head_dim": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DConditionModel(**(base | config))


def learned_variance_unet(**config) -> UNet2DConditionModel:
    """The U-Net of DeepFloyd IF and Kandinsky 2, whose output carries a variance half."""
    base = {
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
        "encoder_hid_dim": DIM,
    }
    return unet(**(base | config))


def pixel_unet(**config) -> UNet2DModel:
    """Unconditional U-Net on 3 x 8 x 8 images."""
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **config,
    )
