# SPDX-License-Identifier: Apache-2.0
"""Random training examples: which tile, drawn how, with which of its words."""

from __future__ import annotations

import numpy as np
from data import Tile, colour_words_of_picture, hue_turned

# Things of one kind come in any colour: their hue may be turned, and the colour words follow.
ANY_COLOUR = set(
    "potion ring book amulet wand staff rod shield helmet hat cloak robe boots gloves armour "
    "dragonscale dragon snake spider butterfly rune orb crystal eye draconian bat frog scorpion "
    "turtle fish jelly beetle sword axe bow gem bird lizard ant bottle dagger mushroom "
    "demon".split()
)
EVERYDAY = set(
    "sword book potion ring shield boots dragon spider skeleton tree axe bow staff helmet amulet "
    "scroll wand snake ghost hat cloak statue altar key chest apple banana bat wolf dog bear "
    "turtle scorpion demon giant eye butterfly elephant frog rat fish mushroom bee knight "
    "angel crab orb door fountain pizza bread strawberry lemon grape fruit robe "
    "gloves hammer sheep".split()
)
MIRRORED = ("/mon/", "/dc-mon/", "/monsters/", "/trees/", "/food/")
TURNS = (43, 85, 128, 170, 213)  # of 256


class Batches:
    """Draws batches of pixels in [-1, 1] and captions."""

    def __init__(self, tiles: list[Tile], words: set[str], seed: int) -> None:
        self.tiles, self.words = tiles, words
        self.rng = np.random.default_rng(seed)
        counts: dict[str, int] = {}
        for tile in tiles:
            counts[tile.noun] = counts.get(tile.noun, 0) + 1
        weight = [(2.0 if t.noun in EVERYDAY else 1.0) / counts[t.noun] ** 0.5 for t in tiles]
        self.weight = np.array(weight) / np.sum(weight)
        self.turned = [self._turns(t) if t.noun in ANY_COLOUR else [] for t in tiles]

    @staticmethod
    def _turns(tile: Tile) -> list[tuple[np.ndarray, list[str]]]:
        if not any(c not in ("grey", "white", "black") for c in tile.colours):
            return []
        turned = [hue_turned(tile.pixels, t) for t in TURNS]
        return [(p, c) for p in turned if (c := colour_words_of_picture(p))]

    def caption(self, tile: Tile) -> str:
        """A random part of the tile's words, at least one, most often with its noun."""
        rng = self.rng
        keep = rng.random()
        chosen = [c for c in tile.colours if rng.random() < 0.6]
        chosen += [w for w in tile.words if w in self.words and rng.random() < keep]
        if rng.random() < 0.25:
            rng.shuffle(chosen)
        if not chosen or rng.random() < 0.95:
            chosen.append(tile.noun)
        return " ".join(chosen)

    def example(self, index: int) -> tuple[np.ndarray, str]:
        """The pixels (32, 32, 3) uint8 and the caption of one random example."""
        rng, tile = self.rng, self.tiles[index]
        pixels, caption = tile.pixels, self.caption(tile)
        if self.turned[index] and rng.random() < 0.4:
            pixels, colours = self.turned[index][rng.integers(len(self.turned[index]))]
            kept = colours if rng.random() < 0.5 else colours[:1]
            caption = " ".join([*kept, tile.noun])
        if rng.random() < 0.5 and any(part in "/" + tile.path for part in MIRRORED):
            pixels = pixels[:, ::-1]
        pixels = self.shifted(pixels)
        chance = rng.random()
        if chance < 0.12:
            caption = ""
        elif chance < 0.14:
            caption = "<unk> " + caption  # an unknown word shall mean nothing
        return pixels, caption

    def shifted(self, pixels: np.ndarray) -> np.ndarray:
        """Move the sprite by up to 2 pixels each way, never out of the picture."""
        ink = (pixels < 250).any(-1)
        for axis in (0, 1):
            where = np.flatnonzero(ink.any(1 - axis))
            if len(where) == 0:
                continue
            low, high = -min(2, where[0]), min(2, ink.shape[axis] - 1 - where[-1])
            pixels = np.roll(pixels, self.rng.integers(low, high + 1), axis)
        return pixels

    def draw(self, count: int) -> tuple[np.ndarray, list[str]]:
        """A batch: float32 (count, 3, 32, 32) in [-1, 1], and its captions."""
        picks = self.rng.choice(len(self.tiles), count, p=self.weight)
        pairs = [self.example(i) for i in picks]
        pixels = np.stack([p for p, _ in pairs]).astype(np.float32) / 127.5 - 1
        return pixels.transpose(0, 3, 1, 2).copy(), [c for _, c in pairs]


def held_out(tiles: list[Tile], count: int, seed: int = 7) -> tuple[list[Tile], list[Tile]]:
    """Split off `count` tiles whose noun has at least ten others: (kept, held out)."""
    counts: dict[str, int] = {}
    for tile in tiles:
        counts[tile.noun] = counts.get(tile.noun, 0) + 1
    able = [i for i, t in enumerate(tiles) if counts[t.noun] >= 10]
    chosen = set(np.random.default_rng(seed).choice(able, count, replace=False).tolist())
    kept = [t for i, t in enumerate(tiles) if i not in chosen]
    return kept, [tiles[i] for i in sorted(chosen)]
