# SPDX-License-Identifier: Apache-2.0
"""Pictures as latents: each format against the pipelines of diffusers themselves."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from families import FAMILIES, Family
from pictures import (
    SHARED,
    TinyFlux2,
    asymmetric_vae,
    flux_2,
    pictures,
    tensor,
    tiny_vae,
    vq_vae,
    whiten,
)
from shielded.errors import BadInput, NonFinite
from shielded.spaces import encode
from shielded.spaces.fingerprint import _latent_channels
from shielded.spaces.formats import FORMATS, denormalised, format_of, normalised, side_factor


def swapped(name: str, vae: Callable[[], Any], slot: str = "vae") -> Callable[[], Family]:
    """A family with another autoencoder that its users may put in."""

    def build() -> Family:
        family = FAMILIES[name]()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            setattr(family.pipe, slot, vae().eval().requires_grad_(False))
        return family

    return build


def ltx() -> Family:
    """With a mean and a deviation that are not 0 and 1."""
    family = FAMILIES["ltx"]()
    family.pipe.vae.latents_mean.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    family.pipe.vae.latents_std.copy_(torch.tensor([1.0, 2.0, 1.5, 0.5]))
    return family


BUILDERS = FAMILIES | {
    "ltx": ltx,
    "flux_2": flux_2,
    "asymmetric": swapped("stable_diffusion", asymmetric_vae),
    "taesd": swapped("stable_diffusion", lambda: tiny_vae(scaling_factor=1.2)),
    "taef1": swapped("flux", lambda: tiny_vae(scaling_factor=1.2, shift_factor=0.1)),
    "vqvae": swapped("ldm_text_to_image", vq_vae, "vqvae"),
}
# These take it that an autoencoder shrinks the sides by 8; the tiny one shrinks them by 2.
SIDES = {"lumina_2": 16, "ldm_text_to_image": 16}


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def family(request: pytest.FixtureRequest) -> Family:
    return BUILDERS[request.param]()


def side_of(family: Family) -> int:
    """The side of the pictures that a family's call makes."""
    rgb = 8 if family.rgb else 16
    return SIDES.get(family.name) or family.call.get("height", rgb)


def test_denormalised_is_the_inverse(family: Family) -> None:
    """What the encoder made comes back, but for layouts that only video models have."""
    if family.rgb:
        pytest.skip("has no autoencoder")
    form, vae = format_of(family.pipe)
    shape = (2, _latent_channels(vae), *(1,) * form.video, 6, 4)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factor = side_factor(family.pipe, vae)
    sample = normalised(form, family.pipe, vae, z)
    back = denormalised(form, family.pipe, vae, sample, (6 * factor, 4 * factor))
    if form.packing in ("as is", "2 x 2 tokens"):
        assert back is not None
        assert torch.allclose(back, z, rtol=1e-12, atol=1e-12)
    else:
        assert back is None
    blind = denormalised(form, family.pipe, vae, sample, (None, None))
    assert (blind is None) == (form.packing != "as is")


@contextmanager
def ending_in(scheduler: Any, latents: torch.Tensor | None = None) -> Iterator[list[torch.Tensor]]:
    """Note the samples that `step` is given, and let each step return these latents instead."""
    step, seen = scheduler.step, []

    @wraps(step)
    def replaced(model_output, timestep, *args, **kwargs):
        out = step(model_output, timestep, *args, **kwargs)
        sample = next(x for x in (kwargs.get("sample"), *reversed(args)) if torch.is_tensor(x))
        seen.append(sample.clone())
        if latents is None:
            return out
        copies = latents.repeat(len(sample) // len(latents), *[1] * (latents.ndim - 1))
        if isinstance(out, tuple):
            return (copies,) * len(out)
        return type(out)(**dict.fromkeys(out, copies))

    scheduler.step = replaced
    try:
        yield seen
    finally:
        del scheduler.step


def decoded(family: Family, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the pipeline makes of latents after its loop, and the sample its scheduler saw."""
    call: dict[str, Any] = {"num_frames": 1} if family.video else {}
    if "mask_image" in family.call:
        call["mask_image"] = Image.new("L", (16, 16), 255)
    with ending_in(family.pipe.scheduler, latents) as seen:
        return replace(family, call=family.call | call).run(), seen[0]


def through_the_autoencoder(family: Family, images: list[Image.Image]) -> torch.Tensor:
    """decode(encode(x)) in [0, 1], channels last, without a pipeline."""
    x, pipe = tensor(images), family.pipe
    if not family.rgb:
        slot = next(s for s in ("vae", "movq", "vqvae") if getattr(pipe, s, None) is not None)
        vae = getattr(pipe, slot)
        encoded = vae.encode(x[:, :, None] if family.video or family.name == "qwen_image" else x)
        dist = getattr(encoded, "latent_dist", None)
        z = dist.mode() if dist else next(iter(encoded.values()))
        settings = {"force_not_quantize": True} if slot == "movq" else {}
        x = vae.decode(z, return_dict=False, **settings)[0]
        x = x[:, :, 0] if family.name == "qwen_image" else x
    x = (x / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    return x


def test_latents_are_what_the_pipeline_decodes_to_the_picture(family: Family) -> None:
    """Layout, scaling and shift at once: the pipeline's own code after the loop is the judge."""
    images = pictures(family.images, side_of(family))
    latents = encode(family.pipe, images, side_of(family), side_of(family))
    got, sample = decoded(family, latents)
    assert latents.dtype == torch.float32
    assert latents.shape[1:] == sample.shape[1:]
    expected = through_the_autoencoder(family, images)
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, atol=2e-5)
    assert (got[0] - got[1]).abs().max() > 1e-3, "two pictures, two images"
    other, _ = decoded(family, 1.01 * latents + 0.01)
    assert (got - other).abs().max() > 1e-4, "another scaling and shift would have been seen"


IMG2IMG = {
    "StableDiffusionImg2ImgPipeline": "stable_diffusion",
    "StableDiffusionXLImg2ImgPipeline": "stable_diffusion_xl",
    "LatentConsistencyModelImg2ImgPipeline": "latent_consistency",
    "StableDiffusion3Img2ImgPipeline": "stable_diffusion_3",
    "FluxImg2ImgPipeline": "flux",
    "QwenImageImg2ImgPipeline": "qwen_image",
    "ZImageImg2ImgPipeline": "z_image",
    "KandinskyV22Img2ImgPipeline": "kandinsky_decoder",
    "WanVideoToVideoPipeline": "wan",
    "CogVideoXVideoToVideoPipeline": "cogvideox",
}


def first_sample(pipe: Any, call: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The first sample of an img2img pipeline that adds no noise and takes the mode."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda d, *_, **__: d.mode())
    monkeypatch.setattr(pipe.scheduler, "add_noise", lambda x, n, t: x, raising=False)
    monkeypatch.setattr(pipe.scheduler, "scale_noise", lambda x, t, n: x, raising=False)
    pipe.set_progress_bar_config(disable=True)
    with ending_in(pipe.scheduler) as seen:
        pipe(**call, strength=1.0, generator=torch.Generator().manual_seed(0))
    return seen[0]


@pytest.mark.parametrize("name", sorted(IMG2IMG))
def test_latents_are_those_that_img2img_starts_from(name, monkeypatch) -> None:
    family, kind = FAMILIES[IMG2IMG[name]](), getattr(diffusers, name)
    wanted = signature(kind.__init__).parameters
    pipe = kind(**{k: part for k, part in family.pipe.components.items() if k in wanted})
    side = side_of(family)
    images = pictures(1 if family.video else family.images, side)
    call = family.call | {"image": images}
    if family.video:
        call = {k: v for k, v in family.call.items() if k != "num_frames"}
        call |= {"prompt": "a dog", "video": images}
    sample = first_sample(pipe, call, monkeypatch)
    got = encode(pipe, images, side, side)
    assert got.shape == sample.shape
    assert torch.allclose(got, sample, atol=1e-5)


def test_sdxl_applies_the_mean_and_deviation_that_its_autoencoder_states(monkeypatch) -> None:
    parts = FAMILIES["stable_diffusion_xl"]().pipe.components
    parts["vae"].register_to_config(latents_mean=[0.1, -0.2, 0.3, 0], latents_std=[1, 2, 0.5, 3])
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)
    images = pictures(2, 16)
    call = {"prompt": ["a", "b"], "image": images, "num_inference_steps": 2}
    sample = first_sample(pipe, call, monkeypatch)
    assert torch.allclose(encode(pipe, images, 16, 16), sample, atol=1e-5)


BY_CHANNEL = {"latents_mean", "latents_std", "batch_norm"}
PIPELINES = Path(diffusers.__file__).parent / "pipelines"
# Their code names what it does not apply to the image: a control image, a second pipeline's work.
OTHERWISE = {
    "pipeline_cogview4_control.py",
    "pipeline_visualcloze_combined.py",
    "pipeline_kandinsky2_2_img2img.py",
    "pipeline_kandinsky2_2_controlnet_img2img.py",
    "pipeline_kandinsky3_img2img.py",
}


def claimed_pipelines() -> Iterator[tuple[str, Any, str]]:
    """Every pipeline file of diffusers whose components a row of the table claims."""
    for path in sorted(PIPELINES.glob("*/pipeline_*.py")):
        code = path.read_text()
        code = code[max(code.find("\nclass "), 0) :]
        stated: dict[str, str] = dict.fromkeys(("vae", "movq", "vqvae", "unet", "transformer"), "")
        for part, kinds in re.findall(r"^ {8}(\w+): (\w[\w| ]+)", code, re.M):
            if part in stated:
                stated[part] += f" {kinds}"
        classes = " ".join(re.findall(r"^class (\w+)", code, re.M))
        users = {*stated["unet"].split(), *stated["transformer"].split(), *classes.split()}
        for row in FORMATS:
            encoders = set(stated[row.slot].split())
            if encoders & set(row.encoders.split()) and users & set(row.denoisers.split()):
                yield path.name, row, code
                break


def test_every_pipeline_that_a_row_claims_does_what_the_row_says() -> None:
    """The numbers and the packing that the code of each pipeline names are those of its row."""
    claimed = list(claimed_pipelines())
    assert len(claimed) > 120
    assert {row.name for _, row, _ in claimed} == {row.name for row in FORMATS}
    for file, row, code in claimed:
        if file in OTHERWISE:
            continue
        named = set(re.findall(r"\b(?:shift_factor|scaling_factor|sigma_data)\b", code))
        assert named == set(row.numbers.split()) - BY_CHANNEL, file
        assert ("batch_norm_eps" in code) == (row.numbers == "batch_norm"), file
        assert ("_pack_latents" in code) == (row.packing in ("2 x 2 tokens", "voxels")), file
        if row.name != "stable diffusion":  # SDXL alone applies them, if they are stated
            assert ("latents_mean" in code) == ("latents_mean" in row.numbers), file


PACKED = "Flux Chroma Bria OvisImage LongCatImage QwenImage Krea2 NucleusMoEImage"


@pytest.mark.parametrize("name", PACKED.split())
def test_tokens_are_packed_as_each_pipeline_packs_them(name) -> None:
    kind = getattr(diffusers, f"{name}Pipeline")
    row = next(f for f in FORMATS if re.search(rf"\b{name}Transformer2DModel", f.denoisers))
    z = torch.arange(2 * 4 * 6 * 8.0).reshape(2, 4, 6, 8)
    if name == "Krea2":
        expected = kind._pack_latents(SimpleNamespace(patch_size=2), z, *z.shape)
    else:
        expected = kind._pack_latents(z, *z.shape, *([2] if name == "NucleusMoEImage" else []))
    assert torch.equal(row.pack(z), expected)
    assert torch.equal(row.pack(z[:, :, None]), expected)


@pytest.mark.skipif(not (SHARED / "taef2").is_dir(), reason="the shared data are not here")
def test_real_pictures_come_back_through_a_real_autoencoder() -> None:
    """Emoji through FLUX.2's format and its pipeline: 64 x 64 pixels to 16 tokens and back."""
    packed = np.load(SHARED / "noto_emoji" / "noto_emoji_64_premult.npz", allow_pickle=False)
    rgba = packed["rgba_premultiplied"][::400].astype(int)
    images = [Image.fromarray(r.astype(np.uint8)) for r in rgba[..., :3] + 255 - rgba[..., 3:]]
    vae = TinyFlux2.load(SHARED / "taef2")
    z = vae.encode(tensor(images)).latent_dist.mode()
    cells = z.reshape(len(z), 32, 4, 2, 4, 2).permute(1, 3, 5, 0, 2, 4).flatten(0, 2).flatten(1)
    whiten(vae, cells.mean(1), cells.var(1))
    family = flux_2(vae)
    latents = encode(family.pipe, images, 64, 64)
    assert latents.shape == (len(images), 16, 128)
    assert float(latents.mean().abs()) < 0.01
    assert float(latents.std()) == pytest.approx(1, abs=0.02), "normalised by the batch norm"
    embeds = torch.zeros(len(images), 4, 16)
    family = replace(
        family, call=family.call | {"prompt_embeds": embeds, "height": 64, "width": 64}
    )
    got, sample = decoded(family, latents)
    assert sample.shape == latents.shape
    error = (got - (tensor(images) / 2 + 0.5).movedim(1, -1)).square().mean((1, 2, 3))
    assert (-10 * error.log10()).min() > 20, "PSNR in dB"


def test_a_picture_has_one_latent_whatever_its_company(monkeypatch) -> None:
    pipe, images = FAMILIES["stable_diffusion"]().pipe, pictures(5, 16)
    together = encode(pipe, images)
    monkeypatch.setattr(sys.modules[encode.__module__], "AT_ONCE", 2 * 16 * 16)
    assert torch.allclose(encode(pipe, images), together, atol=1e-5)
    assert torch.allclose(encode(pipe, images[3:4]), together[3:4], atol=1e-5)


@pytest.mark.parametrize(
    "name", ["stable_diffusion", "stable_diffusion_xl", "modular_sdxl", "dit", "cogvideox"]
)
def test_the_default_size_is_that_of_the_pipeline(name) -> None:
    family = FAMILIES[name]()
    call = {k: v for k, v in family.call.items() if k not in ("height", "width")}
    family = replace(family, call=call | ({"num_frames": 1} if family.video else {}))
    with ending_in(family.pipe.scheduler) as seen:
        family.run()
    assert encode(family.pipe, pictures(1, 5)).shape[1:] == seen[0].shape[1:]


def test_half_precision_that_overflows_is_avoided_or_told() -> None:
    """SDXL's rule: float32 while it encodes, and float16 again after that."""
    pipe = FAMILIES["stable_diffusion_xl"]().pipe
    vae, images = pipe.vae.half(), pictures(1, 16)
    expected = encode(pipe, images, 16, 16)
    assert vae.dtype == torch.float16
    vae.float()
    assert torch.equal(encode(pipe, images, 16, 16), expected)
    vae.encoder.conv_in.weight.data.fill_(torch.inf)
    with pytest.raises(NonFinite, match=r"pipe\.vae\.to\(torch\.float32\)"):
        encode(pipe, images, 16, 16)


class Pixel:
    """A pipeline that samples 8 x 8 pixels."""

    def __init__(self, channels: int = 3) -> None:
        self.unet = SimpleNamespace(config=SimpleNamespace(in_channels=channels))
        self.components = {"unet": self.unet}
        self.default_sample_size = 8

    def __call__(self) -> None: ...


def test_pictures_of_other_modes_and_sizes() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert torch.equal(encode(Pixel(), [clear]), torch.ones(1, 3, 8, 8)), "transparent is white"
    for mode in ("L", "RGBA"):
        assert encode(Pixel(), pictures(1, 11, mode)).shape == (1, 3, 8, 8)
    grey = encode(Pixel(channels=1), pictures(2, 8, "L"))
    assert torch.equal(grey, encode(Pixel(), pictures(2, 8, "L"))[:, :1]), "a model of grey images"


def test_a_picture_of_16_bits_is_not_cut_to_white() -> None:
    levels = np.linspace(0, 65535, 64).reshape(8, 8)
    deep = Image.fromarray(levels.astype(np.uint16))
    assert deep.mode == "I;16"
    expected = torch.from_numpy((levels / 257).round() / 127.5 - 1).float()
    assert torch.allclose(encode(Pixel(), [deep])[0, 0], expected, atol=1 / 127)


def test_a_photo_is_encoded_upright() -> None:
    (upright,) = pictures(1, 8)
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6  # a viewer turns it by 90 degrees clockwise
    assert torch.equal(encode(Pixel(), [lying]), encode(Pixel(), [upright]))


def test_what_cannot_be_encoded_is_named() -> None:
    pipe = FAMILIES["wan"]().pipe
    pipe.vae = FAMILIES["stable_diffusion"]().pipe.vae
    with pytest.raises(BadInput, match=r"WanPipeline with AutoencoderKL and Wan.*Shields\.images"):
        encode(pipe, pictures(1, 16), 16, 16)
    with pytest.raises(BadInput, match="no images"):
        encode(pipe, [])
    flux = FAMILIES["flux"]().pipe
    assert format_of(flux)[0].name == "flux"
    with pytest.raises(BadInput, match="18 x 16: give multiples of 4"):
        encode(flux, pictures(1, 16), 18, 16)
    kandinsky = FAMILIES["kandinsky_decoder"]().pipe
    with pytest.raises(BadInput, match="16 x 18: give multiples of 4"):
        encode(kandinsky, pictures(1, 16), 16, 18)
    nameless = Pixel()
    del nameless.default_sample_size
    with pytest.raises(BadInput, match="height and width"):
        encode(nameless, pictures(1, 8))
