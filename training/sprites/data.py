# SPDX-License-Identifier: Apache-2.0
"""Captions and pixels of the CC0 tiles: which are kept, how they are called and drawn."""

from __future__ import annotations

import colorsys
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from words import DROPPED, FOLDERS, KINDS, NAMES, REWRITES, SKIPPED_FILES, SKIPPED_FOLDERS

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
HUE_ENDS = (14, 40, 66, 160, 196, 256, 292, 342)  # degrees; past the last one it is red again


@dataclass
class Tile:
    """One picture, the noun that it shows, and the other words that describe it."""

    pixels: np.ndarray  # (32, 32, 3) uint8, on white
    noun: str
    words: list[str]
    colours: list[str] = field(default_factory=list)
    path: str = ""

    @property
    def caption(self) -> str:
        """Every word, the noun last."""
        return " ".join([*self.colours, *self.words, self.noun])


def folders_and_name(path: str) -> tuple[str, str]:
    """Split a path into its folder (release names dropped) and its bare file name."""
    parts = [p for p in path.split("/") if p not in ("releases", "Ancient", "Oct-5-2010")]
    parts = [p.removeprefix("dc-") for p in parts if p not in ("Nov-2015", "UNUSED")]
    return "/".join(parts[:-1]), parts[-1].rsplit(".", 1)[0]


def name_words(name: str) -> list[str]:
    """The plain words of a file name: rewritten, without numbers and noise."""
    text = " " + re.sub(r"[\d_.\-]+", " ", name.lower()) + " "
    for old, new in REWRITES.items():
        text = text.replace(f" {old} ", f" {new} ")
    text = text.split(" of ")[0]
    return [w for w in text.split() if w not in DROPPED and len(w) > 1]


def describe(path: str) -> tuple[str, list[str]] | None:
    """The noun and the other words for a path, or None where the tile is not wanted."""
    folder, name = folders_and_name(path)
    if any(re.search(p, folder) for p in SKIPPED_FOLDERS):
        return None
    if any(re.search(p, name) for p in SKIPPED_FILES):
        return None
    noun = next((n for p, n in FOLDERS.items() if re.search(p, folder)), None)
    words = name_words(name)
    if folder.startswith("mon/unique") or name.startswith(("urand", "unrand")):
        words = [w for w in words if w in NAMES]
    found = [w for w in words if w in KINDS]
    extra: list[str] = []
    if noun is None or noun.endswith("?"):  # "?" marks a fallback: a noun in the name wins
        fallback = noun[:-1] if noun else (words[-1] if words else None)
        noun = found[-1] if found else fallback
        if noun is None:
            return None
        broader = KINDS.get(noun, "")
        extra = [w for w in [broader] if w and w != noun]
    rest = [w for w in dict.fromkeys(words) if w != noun]
    if extra:  # a rapier is also a sword: the everyday word is the noun
        rest, noun = [*rest, noun], extra[0]
    return noun, [w for w in dict.fromkeys(rest) if w != noun]


def colour_of(r: float, g: float, b: float) -> str | None:
    """The everyday name of one colour, each channel in [0, 1]; None where it is an outline."""
    hue, sat, value = colorsys.rgb_to_hsv(r, g, b)
    hue *= 360
    if value < 0.16:
        return "black"
    if sat < 0.18 or (sat < 0.3 and value < 0.35):
        return "white" if value > 0.85 else "grey" if value > 0.3 else "black"
    if (hue < 48 or hue > 350) and value < 0.68 and sat < 0.78 and hue > 12:
        return "brown"
    return next((c for c, end in zip(COLOURS, HUE_ENDS, strict=True) if hue < end), "red")


def colour_words(rgba: np.ndarray) -> list[str]:
    """At most two colour words that a person would use for the opaque part of a tile."""
    solid = rgba[rgba[..., 3] > 128][:, :3] / 255.0
    counts: dict[str, int] = {}
    for r, g, b in solid:
        name = colour_of(r, g, b)
        counts[name] = counts.get(name, 0) + 1
    total = max(1, len(solid))
    hued = {k: v for k, v in counts.items() if k in COLOURS or k == "brown"}
    chroma = sum(hued.values())
    if chroma > 0.2 * total:
        ranked = sorted(hued, key=hued.get, reverse=True)
        top = [c for c in ranked if hued[c] > 0.42 * chroma]
        second = [c for c in ranked if c not in top and hued[c] > 0.3 * chroma]
        return (top + second)[:2]
    plain = {k: v for k, v in counts.items() if k not in hued}
    plain["black"] = plain.get("black", 0) // 2  # outlines are black too
    best = max(plain, key=plain.get)
    return [best] if plain[best] > 0.45 * (total - plain["black"]) else []


def colour_words_of_picture(pixels: np.ndarray) -> list[str]:
    """The colour words of a picture on white: what is not white is the thing."""
    alpha = np.where((pixels < 250).any(-1, keepdims=True), 255, 0).astype(np.uint8)
    return colour_words(np.concatenate([pixels, alpha], -1))


def hue_turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Turn the hue of every pixel by `turn` 256ths of the colour circle."""
    hsv = np.array(Image.fromarray(pixels).convert("HSV"))
    hsv[..., 0] += np.uint8(turn)
    return np.array(Image.fromarray(hsv, "HSV").convert("RGB"))


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Composite (32, 32, 4) uint8 on white: (32, 32, 3) uint8."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def load_tiles(path: str | Path) -> list[Tile]:
    """Every wanted tile of the archive, once, with its caption."""
    archive = np.load(path)
    tiles: list[Tile] = []
    seen: set[bytes] = set()
    for rgba, name in zip(archive["rgba"], archive["path"], strict=True):
        told = describe(str(name))
        area = float((rgba[..., 3] > 128).mean())
        if told is None or area < 0.06:
            continue
        pixels = on_white(rgba)
        if pixels.tobytes() in seen:
            continue
        seen.add(pixels.tobytes())
        noun, words = told
        colours = colour_words(rgba)
        for metal, tint in (("gold", "yellow"), ("silver", "grey")):
            jewel = noun in ("ring", "amulet", "crown")
            if jewel and tint in colours and metal not in words:
                words = [*words, metal]
        if "gold" in words and noun == "ring":
            colours = [c for c in colours if c not in ("orange", "brown")]
        if noun in ("skeleton", "statue", "altar") and colours[:1] in (["black"], ["grey"]):
            colours = []  # drawn in outlines: nobody would call it that
        colours = [c for c in colours if c not in words and c != noun]
        words = ["grey" if w == "gray" else w for w in words]
        tiles.append(Tile(pixels, noun, words, colours, str(name)))
    return tiles


def vocabulary(tiles: list[Tile], at_least: int = 2) -> list[str]:
    """The caption words that occur often enough to be learnt, sorted."""
    counts: dict[str, int] = {}
    for tile in tiles:
        for word in set(tile.caption.split()):
            counts[word] = counts.get(word, 0) + 1
    nouns = {tile.noun for tile in tiles} | {*COLOURS, "brown", "grey", "white", "black"}
    return sorted(nouns | {w for w, n in counts.items() if n >= at_least})
