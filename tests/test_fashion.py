# SPDX-License-Identifier: Apache-2.0
"""Class to image: an ideal network in the pipeline of tiny-fashion makes its result a formula."""

import diffusers
import numpy as np
import pytest
import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from shielded.errors import BadInput
from shielded.models import class_to_image
from shielded.models.class_to_image import TinyClassToImagePipeline

NAMES = ["T-shirt/top", "trouser", "dress", "ankle boot"]
LABELS = {"0": "T-shirt/top, T-shirt, top", "1": "trouser", "2": "dress", "3": "ankle boot, boot"}
NONE, SIZE, PATCH = 4, 12, 2


def seeds(*numbers):
    return [torch.Generator().manual_seed(n) for n in numbers]


def goal(label):
    """The one picture (1, 12, 12) that an ideal network knows of a label."""
    draw = torch.Generator().manual_seed(100 + int(label))
    return torch.rand(1, SIZE, SIZE, generator=draw) * 1.8 - 0.9


@pytest.fixture(scope="module")
def loaded():
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=SIZE // PATCH,
        in_channels=PATCH**2,
        out_channels=PATCH**2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=NONE + 1,
    ).eval()  # as one that was loaded: while training, its dropout lays numbers out another way
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = TinyClassToImagePipeline(unet, scheduler, id2label=LABELS, patch_size=PATCH)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(loaded):
    """The random network, its scheduler as it was."""
    scheduler = loaded.scheduler
    yield loaded
    loaded.scheduler = scheduler


@pytest.fixture
def ideal(pipe, monkeypatch):
    """Each label is one picture: eps - x0 = (x_t - x0) / s, so Euler lands on x0 exactly."""

    def forward(x, t, class_labels, return_dict):
        x0 = torch.stack([goal(label) for label in class_labels])
        return (pixel_unshuffle((pixel_shuffle(x, PATCH) - x0) / (t / 1000), PATCH),)

    monkeypatch.setattr(pipe.unet, "forward", forward)
    return pipe


def drawn(pipe, asked, **told):
    told = {"num_inference_steps": 4, "output_type": "latent", "guidance_scale": 1.0, **told}
    return pipe(asked, **told).images


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 3.0])
def test_guidance_goes_from_no_class_through_the_class(ideal, scale):
    """At most 1 is the class itself; above, none + scale (class - none)."""
    images = drawn(ideal, "dress", guidance_scale=scale, generator=seeds(5))
    expected = goal(NONE) + max(scale, 1.0) * (goal(2) - goal(NONE))
    torch.testing.assert_close(images[0], expected, rtol=0, atol=1e-5)


def test_the_empty_name_is_no_class(ideal):
    torch.testing.assert_close(drawn(ideal, "")[0], goal(NONE), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        drawn(ideal, "", guidance_scale=3.0)[0], goal(NONE), rtol=0, atol=1e-5
    )


def test_images_of_one_class_are_next_to_each_other(ideal):
    images = drawn(ideal, ["boot", "trouser"], num_images_per_prompt=2, guidance_scale=2.0)
    for image, label in zip(images, [3, 3, 1, 1], strict=True):
        expected = 2 * goal(label) - goal(NONE)
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)


def test_the_callback_may_turn_to_another_class(ideal):
    def callback(_, step, t, tensors):
        assert set(tensors) == {"latents", "class_labels"}
        return {"class_labels": torch.full_like(tensors["class_labels"], 1)} if step == 1 else {}

    images = drawn(
        ideal,
        "dress",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=("latents", "class_labels"),
    )
    torch.testing.assert_close(images[0], goal(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "label"),
    [
        ("T-shirt/top", 0), ("tshirt", 0), ("T shirts", 0), ("top", 0), ("a pair of trousers", 1),
        ("dress", 2), ("Dresses", 2), ("a picture of an ankle boot", 3), ("boots", 3), (3, 3),
        ("", NONE), ("a picture", NONE),
    ],
)  # fmt: skip
def test_everyday_spellings_of_a_class(pipe, asked, label):
    assert pipe.get_label_ids(asked) == [label]


def test_classes_are_told_apart_by_name_or_label(pipe):
    assert pipe.class_names == NAMES
    assert pipe.get_label_ids(NAMES) == [0, 1, 2, 3]
    assert pipe.get_label_ids(torch.tensor([2, 0])) == [2, 0]
    by_name = drawn(pipe, "trouser", generator=seeds(0))
    for told in ({"class_labels": 1}, {"class_labels": ["trousers"]}, {"class_labels": [1]}):
        assert torch.equal(by_name, drawn(pipe, None, generator=seeds(0), **told))


def test_an_image_depends_on_its_own_seed_alone(pipe):
    def call(*numbers):
        return drawn(
            pipe,
            "dress",
            num_images_per_prompt=len(numbers),
            generator=seeds(*numbers),
            guidance_scale=2.0,
        )

    batch = call(3, 4, 5)
    assert torch.equal(batch, call(3, 4, 5))
    torch.testing.assert_close(batch[1:2], call(4), rtol=0, atol=1e-4)
    assert (batch[0] - batch[1]).abs().max() > 0.1


def test_guidance_off_asks_the_network_once(pipe, monkeypatch):
    rows = []
    forward = pipe.unet.forward
    monkeypatch.setattr(
        pipe.unet, "forward", lambda x, *a, **k: rows.append(len(x)) or forward(x, *a, **k)
    )
    drawn(pipe, "dress", num_inference_steps=1)
    drawn(pipe, "dress", num_inference_steps=1, guidance_scale=2.0)
    assert rows == [1, 2]


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_pictures_are_grey_in_every_form(pipe, kind):
    latents = drawn(pipe, "dress", generator=seeds(1))
    unit = ((latents + 1) / 2).clamp(0, 1)
    found = drawn(pipe, "dress", generator=seeds(1), output_type=kind)
    assert latents.shape == (1, 1, SIZE, SIZE)
    if kind == "pt":
        assert torch.equal(found, unit)
    elif kind == "np":
        assert np.array_equal(found, unit.permute(0, 2, 3, 1).numpy())
    else:
        assert found[0].mode == "L"
        assert np.array_equal(np.array(found[0]), (unit * 255).round().byte()[0, 0].numpy())


def test_save_and_load_again_is_bit_identical(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = TinyClassToImagePipeline.from_pretrained(tmp_path, local_files_only=True)
    stock = diffusers.DiffusionPipeline.from_pretrained(
        tmp_path,
        custom_pipeline=class_to_image.__file__,
        local_files_only=True,
        trust_remote_code=True,
    )
    first = drawn(pipe, "boots", generator=seeds(0), guidance_scale=2.0)
    for other in (again, stock):
        other.set_progress_bar_config(disable=True)
        assert type(other).__name__ == "TinyClassToImagePipeline"
        assert torch.equal(first, drawn(other, "boots", generator=seeds(0), guidance_scale=2.0))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"prompt": "zeppelin"}, "choose one of T-shirt/top, trouser, dress, ankle boot"),
        ({"prompt": "s"}, "choose one of"),
        ({"prompt": "7"}, "choose one of"),
        ({"prompt": []}, "empty"),
        ({"prompt": None}, "either prompt or class_labels"),
        ({"prompt": "dress", "class_labels": 2}, "either prompt or class_labels"),
        ({"prompt": None, "class_labels": 5}, "from 0 to 3"),
        ({"prompt": None, "class_labels": -1}, "from 0 to 3"),
        ({"prompt": None, "class_labels": 1.5}, "a name or a label"),
        ({"prompt": None, "class_labels": True}, "a name or a label"),
        ({"height": 28}, "12 x 12"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1"),
        ({"latents": torch.zeros(1, 3, 12, 12)}, r"give \(1, 1, 12, 12\)"),
        ({"num_images_per_prompt": 0}, "1 or more"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "class_labels"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(pipe, told, message):
    with pytest.raises(BadInput, match=message):
        pipe(**{"prompt": "dress", "num_inference_steps": 1, **told})
