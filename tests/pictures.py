# SPDX-License-Identifier: Apache-2.0
"""What the tests of encoders share: pictures, a FLUX.2 pipeline, and FLUX.2's tiny autoencoder."""

from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from PIL import Image
from torch import nn

from pipelines.family import Family, shifting_flow

SHARED = Path(__file__).parents[2] / "shared" / "data"


def pictures(count: int, side: int, mode: str = "RGB") -> list[Image.Image]:
    """Pictures of fixed noise, all different."""
    rng, channels = np.random.default_rng(0), {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    noise = rng.integers(0, 256, (count, side, side, *channels), dtype=np.uint8)
    return [Image.fromarray(picture, mode) for picture in noise]


def tensor(images: list[Image.Image]) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return stacked.permute(0, 3, 1, 2) / 127.5 - 1


def flux_2(vae: diffusers.AutoencoderKLFlux2 | None = None) -> Family:
    """FLUX.2 with made-up prompt embeddings, on a tiny autoencoder if none is given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = vae or _tiny_vae()
        channels = 4 * dict(vae.config)["latent_channels"]
        transformer = diffusers.Flux2Transformer2DModel(
            in_channels=channels,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 4, 4),
        )
        prompt_embeds = torch.randn(2, 4, 16)
    pipe = diffusers.Flux2Pipeline(
        scheduler=shifting_flow(),
        vae=vae.eval(),
        text_encoder=None,  # type: ignore[arg-type]
        tokenizer=None,  # type: ignore[arg-type]
        transformer=transformer.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt_embeds": prompt_embeds, "num_inference_steps": 2, "height": 16, "width": 16}
    return Family("flux_2", pipe, call, steps=2)


def _tiny_vae() -> diffusers.AutoencoderKLFlux2:
    """FLUX.2's autoencoder, small, with statistics of its batch norm that are not 0 and 1."""
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
    )
    whiten(vae, torch.linspace(-0.5, 0.5, 16), torch.linspace(0.5, 2.0, 16))
    return vae


def whiten(vae: diffusers.AutoencoderKLFlux2, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Give the batch norm its statistics, one number for each channel of a token."""
    vae.bn.load_state_dict({"running_mean": mean, "running_var": variance}, strict=False)


def tiny_vae(**config) -> diffusers.AutoencoderTiny:
    """TAESD, tinier: an autoencoder without a posterior."""
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        **config,
    )


def asymmetric_vae() -> diffusers.AsymmetricAutoencoderKL:
    """The autoencoder with a heavier decoder, for inpainting."""
    return diffusers.AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        down_block_out_channels=(8, 8),
        up_block_types=("UpDecoderBlock2D",) * 2,
        up_block_out_channels=(8, 8),
        norm_num_groups=4,
    )


def vq_vae() -> diffusers.VQModel:
    """The autoencoder of the first latent diffusion, which quantises when it decodes."""
    vae = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        num_vq_embeddings=256,
        scaling_factor=0.6,
    )
    # Codes as far apart as a trained codebook's: diffusers draws them so close together that
    # rounding alone decides between the nearest two.
    torch.nn.init.normal_(vae.quantize.embedding.weight)
    return vae


class TinyFlux2(diffusers.AutoencoderKLFlux2):
    """TAEF2 (MIT, madebyollin/taesd): a real FLUX.2 encoder and decoder of 5 MB."""

    @classmethod
    def load(cls, folder: Path) -> "TinyFlux2":
        """With the weights of a folder."""
        from safetensors.torch import load_file

        vae = cls(block_out_channels=(4,) * 4, norm_num_groups=4, latent_channels=32)
        vae.encoder, vae.decoder = _taef2_encoder(), _taef2_decoder()
        for part, name in ((vae.encoder, "encoder"), (vae.decoder, "decoder")):
            part.load_state_dict(load_file(folder / f"taef2_{name}.safetensors"))
        return vae.float().eval().requires_grad_(False)

    def encode(self, x, return_dict=True):
        """The latent of pictures in [-1, 1], as a posterior without spread."""
        z = self.encoder(x / 2 + 0.5)
        posterior = torch.cat([z, torch.full_like(z, -30.0)], dim=1)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(posterior))

    def decode(self, z, return_dict=True, generator=None):
        """Pictures in [-1, 1]."""
        return (self.decoder(3 * torch.tanh(z / 3)) * 2 - 1,)


class _Block(nn.Module):
    """Three convolutions around which the input is added; in the middle a pooled branch first."""

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(), nn.ReLU(), _conv(), nn.ReLU(), _conv())
        self.pool = None
        if pooled:
            wide = nn.Conv2d(64, 256, 1, bias=False), nn.GroupNorm(4, 256), nn.ReLU()
            self.pool = nn.Sequential(*wide, nn.Conv2d(256, 64, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.pool is None else x + self.pool(x)
        return torch.relu(self.conv(x) + x)


def _conv(n_in: int = 64, n_out: int = 64, **settings) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, **settings)


def _thin(**settings) -> nn.Conv2d:
    return _conv(bias=False, **settings)


def _taef2_encoder() -> nn.Sequential:
    halved = [
        part
        for pooled in (False, False, True)
        for part in (_thin(stride=2), *(_Block(pooled) for _ in range(3)))
    ]
    return nn.Sequential(_conv(3), _Block(), *halved, _conv(n_out=32))


def _taef2_decoder() -> nn.Sequential:
    doubled = [
        part
        for pooled in (True, False, False)
        for part in (*(_Block(pooled) for _ in range(3)), nn.Upsample(scale_factor=2), _thin())
    ]
    return nn.Sequential(nn.Identity(), _conv(32), nn.ReLU(), *doubled, _Block(), _conv(n_out=3))
