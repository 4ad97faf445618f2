# SPDX-License-Identifier: Apache-2.0
"""The bundled tiny-fashion: its folder, its pictures, and shields for pictures of one channel."""

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from shielded import Shields, Spell, models
from shielded.cli.app import app
from shielded.metrics import SmallNet
from shielded.spaces import Pixels, encode, space_of
from shielded.spaces.encode import channels

NAME = "tiny-fashion"
FOLDER = models.available().get(NAME)


def seeds(*numbers):
    return [torch.Generator().manual_seed(n) for n in numbers]


@pytest.fixture(scope="module")
def pipe():
    loaded = models.load(NAME)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def pixels(images):
    """PIL images as float64 in [-1, 1], flat."""
    return np.stack([np.asarray(i, float) / 127.5 - 1 for i in images]).reshape(len(images), -1)


def test_the_weights_are_half_precision_safetensors_of_at_most_eight_megabytes():
    files = [f for f in FOLDER.rglob("*") if f.is_file()]
    weights = [f for f in files if f.suffix == ".safetensors"]
    assert 0 < sum(f.stat().st_size for f in weights) <= 8_000_000
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".md", ".png"}
    for file in weights:
        with safe_open(file, "pt") as held:
            for key in held.keys():
                tensor = held.get_tensor(key)
                assert tensor.dtype == torch.float16, key
                assert torch.isfinite(tensor).all(), key


def test_every_part_is_a_stock_class(pipe):
    index = json.loads((FOLDER / "model_index.json").read_text())
    stock = {k: v for k, v in index.items() if isinstance(v, list)}
    assert stock == {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    assert pipe.dtype == torch.float32


def test_the_prompts_are_its_ten_classes(pipe):
    lists = models.prompts(NAME)
    assert lists["everyday"] == lists["bench"] == pipe.class_names
    assert len(pipe.class_names) == 10


def test_a_classifier_finds_the_class_asked_for(pipe):
    if "fashion" not in SmallNet.available():
        pytest.skip("the feature network for Fashion-MNIST is not here")
    net, names = SmallNet("fashion"), ["trouser", "sneaker", "bag", "ankle boot"]
    assert net.classes == pipe.class_names
    images = pipe(names, num_images_per_prompt=4, generator=seeds(*range(16)), output_type="latent")
    found = net.probabilities(Pixels().measure(images.images).float()).argmax(1)
    asked = torch.tensor([net.classes.index(n) for n in names]).repeat_interleave(4)
    assert (found == asked).float().mean() >= 0.8


def test_grey_pictures_are_encoded_level_by_level(pipe):
    assert isinstance(space_of(pipe), Pixels)
    assert channels(pipe) == 1
    levels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    grey = Image.fromarray(levels)
    found = encode(pipe, [grey, grey.convert("RGB")])
    assert found.shape == (2, 1, 28, 28)
    for picture in found.double().numpy():
        assert np.abs(picture[0] - (levels / 127.5 - 1)).max() < 1e-7
        assert np.array_equal(((picture[0] + 1) * 127.5).round().astype(np.uint8), levels)


def test_a_coloured_model_is_still_encoded_in_colour():
    assert channels(models.load("tiny-sprites")) == 3


def test_what_the_user_gets_is_outside_every_shield(pipe):
    """After the clamp and the rounding to 8 bits of one channel, as the certificates say."""
    told = {"num_images_per_prompt": 4, "num_inference_steps": 6, "generator": seeds(0, 1, 2, 3)}
    plain = pipe("sneaker", **told).images
    radius = 1.3 * min(np.linalg.norm(a - b) for a, b in combinations(pixels(plain), 2))
    spell = Spell(Shields.batch() + Shields.images(encode(pipe, plain[:1])), radius=radius)
    told["generator"] = seeds(0, 1, 2, 3)
    with spell.on(pipe) as run:
        made = pipe("sneaker", **told).images
    mine, others = pixels(made), pixels(plain[:1])
    for k, certificate in enumerate(run.certificates):
        rest = np.concatenate([np.delete(mine, k, 0), others])
        distances = np.linalg.norm(rest - mine[k], axis=1)
        assert certificate.clear
        nearest = pytest.approx(distances.min(), rel=1e-6)  # references are float32
        assert certificate.distance == nearest
        assert distances.min() >= radius * (1 - 1e-5)


def test_the_command_takes_the_name_of_a_class(tmp_path):
    words = ["generate", "sneaker", "--model", NAME, "-n", "2", "--steps", "3"]
    result = CliRunner().invoke(app, [*words, "--radius", "12", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    made = [Image.open(p) for p in sorted((tmp_path / "shielded").glob("*.png"))]
    assert [i.mode for i in made] == ["L", "L"]
    one, other = pixels(made)
    assert one.shape == (28 * 28,)
    assert np.linalg.norm(one - other) >= 12 * (1 - 1e-5)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["model"]["pipeline"] == "TinyClassToImagePipeline"
    assert run["summary"]["not_clear"] == 0


def test_the_command_names_the_classes_there_are(tmp_path):
    words = ["generate", "zeppelin", "--model", NAME, "-n", "2", "--steps", "1", "--radius", "12"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path)])
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert "trouser" in lines[0]
    assert "'zeppelin'" in lines[0]


def test_the_card_tells_what_a_user_must_know():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in card
    for word in ("Zalando", "## Data", "## Training", "## Quality", "## Limits", "Memoris"):
        assert word in card
