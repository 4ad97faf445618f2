# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[1] / "training" / "sprites"
pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="training/sprites is not here")
RED, GREEN, BLUE = (220, 20, 20), (20, 200, 40), (20, 20, 220)


@pytest.fixture(scope="module")
def sprites():
    """The training scripts' modules: they import each other by their bare names."""
    before = set(sys.modules)
    sys.path.insert(0, str(SCRIPTS))
    import batches
    import data

    yield SimpleNamespace(batches=batches, data=data)
    sys.path.remove(str(SCRIPTS))
    for name in {"batches", "data", "words"} - before:
        sys.modules.pop(name, None)


def square(colour, low=8, high=24):
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[low:high, low:high] = (*colour, 255)
    return rgba


@pytest.mark.parametrize(
    ("path", "noun", "words"),
    [
        ("releases/Nov-2015/item/potion/ruby.png", "potion", ["red", "ruby"]),
        ("releases/Nov-2015/item/weapon/greatsword1.png", "sword", ["great"]),
        ("releases/Nov-2015/item/weapon/rapier2.png", "sword", ["rapier"]),
        ("releases/Ancient/Oct-5-2010/dc-mon/animals/giant_bat.png", "bat", []),
        ("releases/Nov-2015/dngn/statues/statue_elephant.png", "statue", ["elephant"]),
        ("releases/Nov-2015/mon/unique/boris.png", "hero", []),
    ],
)
def test_names_become_plain_words(sprites, path, noun, words):
    assert sprites.data.describe(path) == (noun, words)


@pytest.mark.parametrize(
    "path",
    [
        "releases/Nov-2015/item/potion/i-heal-wounds.png",
        "releases/Nov-2015/gui/skills/axes.png",
        "releases/Nov-2015/dngn/floor/grass/grass1.png",
        "releases/Nov-2015/mon/tentacles/vine_ends/x.png",
    ],
)
def test_tiles_that_show_no_thing_are_left_out(sprites, path):
    assert sprites.data.describe(path) is None


@pytest.mark.parametrize(
    ("colour", "word"), [(RED, "red"), (GREEN, "green"), (BLUE, "blue"), ((120, 120, 120), "grey")]
)
def test_one_colour_is_named(sprites, colour, word):
    assert sprites.data.colour_words(square(colour)) == [word]
    picture = sprites.data.on_white(square(colour))
    assert sprites.data.colour_words_of_picture(picture) == [word]


def test_turning_the_hue_changes_the_colour_and_keeps_the_paper_white(sprites):
    red = sprites.data.on_white(square(RED))
    turned = sprites.data.hue_turned(red, 85)
    assert sprites.data.colour_words_of_picture(turned) == ["green"]
    assert (turned[0, 0] == 255).all()


def tile(sprites, low=1, high=31):
    pixels = sprites.data.on_white(square(RED, low, high))
    return sprites.data.Tile(pixels, "potion", ["ruby"], ["red"], "releases/Nov-2015/item/potion/x")


def test_captions_are_parts_of_the_tiles_words_and_never_empty(sprites):
    batches = sprites.batches.Batches([tile(sprites)], {"ruby", "red", "potion"}, seed=0)
    told = {batches.caption(batches.tiles[0]) for _ in range(300)}
    assert "" not in told
    assert {"potion", "red potion", "red ruby potion"} <= told
    assert {w for t in told for w in t.split()} == {"red", "ruby", "potion"}


def test_shifts_never_push_ink_out(sprites):
    batches = sprites.batches.Batches([tile(sprites)], set(), seed=0)
    pixels = batches.tiles[0].pixels
    count = (pixels < 250).any(-1).sum()
    moved = [batches.shifted(pixels) for _ in range(50)]
    assert {int((m < 250).any(-1).sum()) for m in moved} == {int(count)}
    assert any((m != pixels).any() for m in moved)
    assert all((m[:, 0] >= 250).all() or (m[:, -1] >= 250).all() for m in moved)


def test_batches_hold_pixels_and_captions_and_some_without_words(sprites):
    batches = sprites.batches.Batches([tile(sprites)], {"ruby", "red", "potion"}, seed=0)
    pixels, captions = batches.draw(200)
    assert pixels.shape == (200, 3, 32, 32)
    assert pixels.min() >= -1
    assert pixels.max() == 1
    assert 5 < captions.count("") < 60
    assert any("green" in c for c in captions), "the hue is turned now and then"


def test_tiles_held_out_are_of_common_nouns_only(sprites):
    tiles = [tile(sprites) for _ in range(12)]
    rare = sprites.data.Tile(tiles[0].pixels, "crown", [], [], "")
    kept, held = sprites.batches.held_out([*tiles, rare], 4)
    assert (len(kept), len(held)) == (9, 4)
    assert any(t is rare for t in kept)
