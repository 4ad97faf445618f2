# SPDX-License-Identifier: Apache-2.0
"""Extractors: the networks trained here, and published ones with random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shielded.errors import BadInput, MissingExtra, UnknownModel
from shielded.metrics import CLIP, Extractor, Inception, Pixels, SmallNet, clip_score
from shielded.metrics.features import eight_bit

DATA = Path(__file__).parents[2] / "shared" / "data"
WEIGHTS = Path(__file__).parents[1] / "src" / "shielded" / "metrics" / "weights"


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("name", "shape"), [("sprites", (3, 32, 32)), ("fashion", (1, 28, 28))])
class TestSmallNet:
    def test_an_image_has_the_same_features_in_any_batch(self, name, shape):
        net: Extractor = SmallNet(name)
        images = noise(300, *shape)
        features = net(images)
        assert features.shape == (300, 128)
        assert features.dtype == torch.float32
        assert torch.allclose(net(images[7:9]), features[7:9], rtol=1e-4, atol=1e-5)
        assert float(features.std(0).max()) > 0.01

    def test_probabilities_sum_to_one(self, name, shape):
        net = SmallNet(name)
        chances = net.probabilities(noise(5, *shape))
        assert chances.shape == (5, len(net.classes))
        assert torch.allclose(chances.sum(1), torch.ones(5))

    def test_grey_and_colour_of_one_picture_are_the_same(self, name, shape):
        net = SmallNet(name)
        grey = noise(2, 1, *shape[1:])
        assert torch.allclose(net(grey), net(grey.expand(-1, 3, -1, -1)), atol=1e-5)

    def test_another_size_is_refused(self, name, shape):
        with pytest.raises(BadInput, match="crop or resize"):
            SmallNet(name)(noise(2, 3, 30, 30))

    def test_the_weights_are_small_and_have_a_card(self, name, shape):
        net = SmallNet(name)
        assert sum(p.numel() for p in net.net.parameters()) < 300_000
        assert (WEIGHTS / name / "model.safetensors").stat().st_size < 600_000
        card = (WEIGHTS / name / "README.md").read_text()
        for word in ("License", "train.py", "accuracy"):
            assert word.lower() in card.lower()


def test_fashion_is_told_apart():
    file = DATA / "fashion_mnist" / "fashion_mnist.npz"
    if not file.exists():
        pytest.skip("Fashion-MNIST is not beside the repository")
    with np.load(file, allow_pickle=False) as archive:
        chosen = np.random.default_rng(0).permutation(10_000)[:2000]
        x, y = archive["x_test"][chosen], archive["y_test"][chosen]
    images = torch.from_numpy(x)[:, None] / 127.5 - 1
    found = SmallNet("fashion").probabilities(images).argmax(1)
    assert float((found == torch.from_numpy(y)).float().mean()) > 0.87


def test_sprites_are_told_apart():
    file = DATA / "crawl_tiles_cc0" / "crawl_tiles_32.npz"
    if not file.exists():
        pytest.skip("the tiles are not beside the repository")
    from shielded.bench.sprites import tiles

    net = SmallNet("sprites")
    paths = [str(p) for p in np.load(file, allow_pickle=False)["path"]]
    chosen = [n for n, p in enumerate(paths) if "item/book/" in p]
    found = net.probabilities(tiles(file)[chosen]).argmax(1)
    assert float((found == net.classes.index("item/book")).float().mean()) > 0.9


def test_an_unknown_network_names_those_there_are():
    with pytest.raises(UnknownModel, match="fashion, sprites"):
        SmallNet("faces")


def test_eight_bits_are_those_of_the_saved_image():
    x = torch.tensor([-1.5, -1, 0, 1, 1.2]).view(1, 1, 1, 5)
    assert eight_bit(x).tolist() == [[[[0, 0, 128, 255, 255]]] * 3]
    with pytest.raises(BadInput, match="1 or 3"):
        eight_bit(torch.zeros(2, 4, 3, 3))


@pytest.fixture
def clip_folder(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    words = {w: n for n, w in enumerate("<pad> <unk> a red blue dog cat potion <end>".split())}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A <end>", special_tokens=[("<end>", 8)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(tmp_path)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2}  # fmt: skip
    config = CLIPConfig(
        text_config={**small, "vocab_size": 9, "max_position_embeddings": 6, "eos_token_id": 8},
        vision_config={**small, "image_size": 56, "patch_size": 14},
        projection_dim=12,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(tmp_path)
    return tmp_path


def test_clip_is_that_of_transformers(clip_folder):
    """The same cosines as its own processor and model give, on pictures that are not square."""
    from PIL import Image
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    prompts = ["a red potion", "a blue dog a cat a dog"]  # the second is cut off
    pixels = np.random.default_rng(0).integers(0, 256, (2, 60, 90, 3), dtype=np.uint8)
    process = CLIPImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
    )
    shown = process([Image.fromarray(p) for p in pixels], return_tensors="pt")
    read = AutoTokenizer.from_pretrained(clip_folder)(
        prompts, padding=True, truncation=True, max_length=6, return_tensors="pt"
    )
    model = CLIPModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        theirs = model(pixel_values=shown["pixel_values"], **read)
    cosines = (theirs.logits_per_image.diagonal() / model.logit_scale.exp()).detach()
    ours = CLIP(clip_folder)
    images = ours(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1)
    texts = ours.texts(prompts)
    unit = images / images.norm(dim=1, keepdim=True)
    assert torch.allclose(unit, theirs.image_embeds, atol=2e-3)  # PIL rounds twice
    assert torch.allclose(texts / texts.norm(dim=1, keepdim=True), theirs.text_embeds, atol=1e-5)
    assert clip_score(images, texts) == pytest.approx(float(cosines.clamp(min=0).mean()), abs=2e-3)


def test_inception_without_torch_fidelity_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MissingExtra, match=r"shielded-diffusion\[metrics\]"):
        Inception()


def test_pixels_are_an_extractor():
    net: Extractor = Pixels()
    assert net(noise(2, 3, 4, 4)).shape == (2, 48)
