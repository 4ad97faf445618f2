# SPDX-License-Identifier: Apache-2.0
import json
import logging
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors import safe_open

import shielded
from shielded import models
from shielded.errors import BadInput, UnknownModel
from shielded.models.text_to_image import TinyTextToImagePipeline

NAME = "tiny-sprites"
FOLDER = models.available()[NAME]
STEPS = 6


def seeds(*numbers):
    return [torch.Generator().manual_seed(n) for n in numbers]


@pytest.fixture(scope="module")
def loaded():
    pipe = models.load(NAME)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(loaded):
    """The model with its own scheduler, whatever the last test put there."""
    scheduler = loaded.scheduler
    yield loaded
    loaded.scheduler = scheduler


@pytest.fixture
def warnings_of(caplog, monkeypatch):
    """The sentences logged as warnings: diffusers' loggers do not propagate by themselves."""
    root = logging.getLogger("shielded")
    monkeypatch.setattr(root, "propagate", True)
    # The command says each sentence once a process, and its tests may have run in this one.
    monkeypatch.setattr(logging.getLogger("shielded.models"), "filters", [])
    caplog.set_level(logging.WARNING, "shielded.models")
    return lambda: [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_the_model_is_found_by_its_name():
    assert (FOLDER / "model_index.json").is_file()
    assert shielded.load is models.load
    with pytest.raises(UnknownModel, match=NAME):
        models.load("huge-sprites")


def test_the_weights_are_half_precision_safetensors_of_at_most_ten_megabytes():
    files = [f for f in FOLDER.rglob("*") if f.is_file()]
    weights = [f for f in files if f.suffix == ".safetensors"]
    assert sum(f.stat().st_size for f in weights) <= 10_000_000
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".md", ".png"}
    for file in weights:
        with safe_open(file, "pt") as held:
            for key in held.keys():
                tensor = held.get_tensor(key)
                assert tensor.dtype in (torch.float16, torch.int64), key
                assert torch.isfinite(tensor).all(), key


def test_every_part_is_a_stock_class(pipe):
    index = json.loads((FOLDER / "model_index.json").read_text())
    stock = {k: v for k, v in index.items() if isinstance(v, list)}
    assert set(stock) == {"tokenizer", "text_encoder", "unet", "scheduler"}
    assert {v[0] for v in stock.values()} == {"diffusers", "transformers"}
    assert pipe.dtype == torch.float32


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
def test_output_types_agree(pipe, kind):
    def call(output_type):
        return pipe(
            "sword", num_inference_steps=3, generator=seeds(0), output_type=output_type
        ).images

    latents = call("latent")
    assert latents.shape == (1, 3, 32, 32)
    unit = ((latents + 1) / 2).clamp(0, 1)
    found = call(kind)
    if kind == "latent":
        assert torch.equal(found, latents)
    elif kind == "pt":
        assert torch.equal(found, unit)
    elif kind == "np":
        assert np.array_equal(found, unit.permute(0, 2, 3, 1).numpy())
    else:
        eight_bits = (unit * 255).round().byte()[0].permute(1, 2, 0).numpy()
        assert found[0].size == (32, 32)
        assert np.array_equal(np.array(found[0]), eight_bits)


def test_return_dict_off_gives_a_tuple(pipe):
    found = pipe("book", num_inference_steps=1, return_dict=False)
    assert isinstance(found, tuple)
    assert len(found[0]) == 1


def test_images_of_one_prompt_are_next_to_each_other(pipe):
    many = pipe(
        ["red potion", "spider"],
        num_images_per_prompt=2,
        num_inference_steps=STEPS,
        generator=seeds(0, 1, 0, 1),
        output_type="latent",
    ).images
    alone = pipe(
        "red potion",
        num_images_per_prompt=2,
        num_inference_steps=STEPS,
        generator=seeds(0, 1),
        output_type="latent",
    ).images
    assert many.shape == (4, 3, 32, 32)
    torch.testing.assert_close(many[:2], alone, rtol=0, atol=2e-3)
    assert (many[2:] - alone).abs().max() > 0.1


def test_an_image_depends_on_its_own_seed_alone(pipe):
    def call(*numbers):
        return pipe(
            "dragon",
            num_images_per_prompt=len(numbers),
            num_inference_steps=STEPS,
            generator=seeds(*numbers),
            output_type="latent",
        ).images

    batch = call(3, 4, 5)
    assert torch.equal(batch, call(3, 4, 5))
    torch.testing.assert_close(batch[1:2], call(4), rtol=0, atol=2e-3)
    assert (batch[0] - batch[1]).abs().max() > 0.1


def test_latents_take_the_place_of_drawn_noise(pipe):
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    told = {"num_inference_steps": 3, "output_type": "latent"}
    given = pipe("hat", latents=noise, **told).images
    drawn = pipe("hat", generator=seeds(7), **told).images
    assert torch.equal(given, drawn)


def test_save_and_load_again_is_bit_identical(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "copy")
    again = TinyTextToImagePipeline.from_pretrained(tmp_path / "copy", local_files_only=True)
    again.set_progress_bar_config(disable=True)
    told = {"num_inference_steps": 3, "output_type": "latent"}
    first = pipe("shield", generator=seeds(0), **told).images
    assert torch.equal(first, again("shield", generator=seeds(0), **told).images)


def test_stock_diffusers_loads_the_folder_when_told_where_the_class_is():
    from shielded.models import text_to_image

    again = diffusers.DiffusionPipeline.from_pretrained(
        FOLDER,
        custom_pipeline=text_to_image.__file__,
        local_files_only=True,
        trust_remote_code=True,
    )
    assert type(again).__name__ == "TinyTextToImagePipeline"
    assert again.size == 32


def test_guidance_off_asks_the_network_once(pipe, monkeypatch):
    rows = []
    forward = pipe.unet.forward
    monkeypatch.setattr(
        pipe.unet, "forward", lambda x, *a, **k: rows.append(len(x)) or forward(x, *a, **k)
    )
    pipe("sword", num_inference_steps=1, guidance_scale=1.0)
    pipe("sword", num_inference_steps=1, guidance_scale=2.0)
    assert rows == [1, 2]


def test_negative_prompt_is_steered_away_from(pipe):
    told = {"num_inference_steps": 3, "output_type": "latent"}
    plain = pipe("potion", generator=seeds(0), **told).images
    empty = pipe("potion", generator=seeds(0), negative_prompt="", **told).images
    against = pipe("potion", generator=seeds(0), negative_prompt="red", **told).images
    assert torch.equal(plain, empty)
    assert (plain - against).abs().max() > 0.05


def test_the_callback_sees_every_step_and_may_change_the_latents(pipe):
    seen = []

    def callback(_, step, t, tensors):
        seen.append((step, float(t)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else {}

    images = pipe(
        "book", num_inference_steps=4, callback_on_step_end=callback, output_type="latent"
    ).images
    assert [s for s, _ in seen] == [0, 1, 2, 3]
    assert [t for _, t in seen] == sorted((t for _, t in seen), reverse=True)
    assert torch.equal(images, torch.zeros_like(images))


def flow(cls, **kwargs):
    return cls(prediction_type="flow_prediction", use_flow_sigmas=True, **kwargs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: diffusers.FlowMatchHeunDiscreteScheduler(),
        lambda: flow(diffusers.DPMSolverMultistepScheduler),
        lambda: flow(diffusers.UniPCMultistepScheduler),
        lambda: flow(diffusers.DEISMultistepScheduler),
    ],
    ids=["heun", "dpm", "unipc", "deis"],
)
def test_other_flow_samplers_reach_the_same_image(pipe, make):
    def call(steps):
        return pipe(
            "red potion",
            num_inference_steps=steps,
            generator=seeds(0),
            guidance_scale=1.5,
            output_type="latent",
        ).images.clamp(-1, 1)

    fine = call(40)
    pipe.scheduler = make()
    other = call(24)
    far = (fine - pipe("axe", generator=seeds(9), output_type="latent").images).abs().mean()
    assert (fine - other).abs().mean() < 0.35 * far


def test_a_scheduler_that_does_not_sample_flows_is_named(pipe, warnings_of):
    pipe.scheduler = diffusers.DDIMScheduler()
    pipe("sword", num_inference_steps=1)
    assert any("DDIMScheduler" in w and "flow" in w for w in warnings_of())


def test_unknown_words_are_named_with_the_nearest_known_ones(pipe, warnings_of):
    assert pipe.unknown_words("a red sword") == {}
    found = pipe.unknown_words("swordd and zeppelin of shields")
    assert list(found) == ["swordd", "zeppelin", "shields"]
    assert found["swordd"][0] == "sword"
    assert "shield" in found["shields"]
    pipe("swordd", num_inference_steps=1)
    assert any("'swordd'" in w and "sword" in w for w in warnings_of())


def test_unknown_and_filler_words_change_nothing(pipe):
    def states(prompt):
        return torch.cat([s.flatten() for s in pipe.encode_prompt([prompt])])

    assert torch.equal(states("a red potion"), states("Red, potion!"))
    assert torch.equal(states("zeppelin"), states(""))
    assert not torch.equal(states("red potion"), states("blue potion"))


def test_pooled_text_reads_every_word(pipe):
    pooled = [pipe.encode_prompt([p])[1] for p in ("red potion", "red sword", "gold sword")]
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3
    assert (pooled[1] - pooled[2]).abs().max() > 1e-3


def test_no_warning_without_a_reason(pipe, warnings_of):
    pipe("the gold ring", num_inference_steps=1)
    assert warnings_of() == []


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"height": 64}, "32 x 32"),
        ({"output_type": "gif"}, "'latent'"),
        ({"prompt": []}, "not empty"),
        ({"prompt": None}, "not empty"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, "give"),
        ({"num_inference_steps": 0}, "1 or more"),
        ({"num_images_per_prompt": 0}, "1 or more"),
        ({"callback_on_step_end_tensor_inputs": ["weights"]}, "'weights'"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(pipe, told, message):
    with pytest.raises(BadInput, match=message):
        pipe(**{"prompt": "sword", "num_inference_steps": 1, **told})


def test_the_prompts_that_come_with_the_model_are_known_to_it(pipe):
    lists = models.prompts(NAME)
    assert (len(lists["everyday"]), len(lists["bench"])) == (10, 40)
    assert len(set(lists["bench"])) == 40
    assert set(lists["everyday"]) <= set(lists["bench"])
    assert pipe.unknown_words(lists["bench"]) == {}


def test_the_prompt_decides_the_colour(pipe):
    def ink(prompt):
        images = pipe(
            prompt,
            num_images_per_prompt=4,
            num_inference_steps=12,
            generator=seeds(0, 1, 2, 3),
            output_type="latent",
        ).images.clamp(-1, 1)
        return images.mean((0, 2, 3))

    red, blue = ink("red potion"), ink("blue potion")
    assert red[0] - red[2] > blue[0] - blue[2] + 0.1


def test_the_card_tells_what_a_user_must_know():
    card = (Path(FOLDER) / "README.md").read_text(encoding="utf-8")
    assert "license: cc0-1.0" in card
    for word in ("## Data", "## Training", "## Limits", "Memoris"):
        assert word in card
    assert "@" not in card.replace("@dataclass", "")
