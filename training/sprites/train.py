# SPDX-License-Identifier: Apache-2.0
"""Train the model `tiny-sprites` by flow matching; stop and resume at any time.

    python train.py --data crawl_tiles_32.npz --out RUN --setup patch2 --minutes 80

Writes RUN/state.safetensors and RUN/state.json (weights, moving average, optimiser, step), a log
RUN/log.jsonl and a sheet of samples now and then. Run it again with the same --out to go on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from batches import Batches, held_out
from data import load_tiles, vocabulary
from diffusers.models.attention_processor import AttnProcessor
from net import SETUPS, SIZE, WORDS_AT_MOST, make_text_encoder, make_tokenizer, make_unet
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import mse_loss, pixel_shuffle, pixel_unshuffle

SHEET_PROMPTS = "red potion|sword|dragon|gold ring|book|skeleton|tree|spider|shield|boots|" \
    "blue potion|axe|snake|hat|purple book|ghost"  # fmt: skip


class Model(torch.nn.Module):
    """Text encoder and U-Net as one: (x_t, s, token ids) -> eps - x0."""

    def __init__(self, setup: str, vocabulary_size: int) -> None:
        super().__init__()
        self.patch = SETUPS[setup]["patch"]
        self.text = make_text_encoder(vocabulary_size)
        self.unet = make_unet(**SETUPS[setup])
        # The fused attention is very slow backwards in bfloat16 on a CPU.
        self.unet.set_attn_processor(AttnProcessor())

    def forward(self, x: torch.Tensor, s: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The velocity, shape of x; s (B,) in [0, 1], 1 is noise."""
        told = self.text(ids)
        with torch.autocast("cpu", torch.bfloat16):
            out = self.unet(
                pixel_unshuffle(x, self.patch), s * 1000,
                encoder_hidden_states=told.last_hidden_state, class_labels=told.pooler_output,
                return_dict=False,
            )[0]  # fmt: skip
        return pixel_shuffle(out.float(), self.patch)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="archive of tiles: rgba, path")
    parser.add_argument("--out", required=True, type=Path, help="folder of this run")
    parser.add_argument("--setup", default="patch2", choices=list(SETUPS))
    parser.add_argument("--minutes", type=float, default=80, help="the whole run's length")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=8e-4, help="highest learning rate")
    parser.add_argument("--ema", type=float, default=0.9985)
    parser.add_argument("--hold", type=int, default=48, help="tiles held out for the loss")
    parser.add_argument("--every", type=int, default=500, help="steps between measurements")
    parser.add_argument("--save-minutes", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2, help="fewer while others compute")
    return parser.parse_args()


def free_threads(at_most: int) -> int:
    """Leave a core to each other program that computes: threads that wait for one crawl.

    Programs of lower priority (nice) do not count: they give way.
    """
    rivals = 0
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, *rest = place.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        other = int(place.parent.name) != os.getpid()
        rivals += state == "R" and other and int(rest[15]) <= os.nice(0)
    return max(1, at_most - rivals)


def learning_rate(highest: float, step: int, share: float) -> float:
    """Warm-up over 200 steps, then a cosine over the share of the run that has passed."""
    return highest * min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * min(1, share)))


def flow_loss(model: Model, x0: torch.Tensor, ids: torch.Tensor, draw: torch.Generator):
    """Mean square error of the velocity at logit-normal times."""
    eps = torch.randn(x0.shape, generator=draw)
    s = torch.sigmoid(torch.randn(len(x0), generator=draw))
    x = x0 + s.view(-1, 1, 1, 1) * (eps - x0)
    return mse_loss(model(x, s, ids), eps - x0)


class Run:
    """One training run on disk: the model, its moving average, its optimiser, its place."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        tiles = load_tiles(options.data)
        place = options.out / "state.json"
        going_on = place.exists()
        self.words = json.loads(place.read_text())["words"] if going_on else vocabulary(tiles)
        self.tokenizer = make_tokenizer(self.words)
        self.tiles, self.held = held_out(tiles, options.hold)
        torch.manual_seed(0)
        self.model = Model(options.setup, len(self.tokenizer))
        self.average = Model(options.setup, len(self.tokenizer)).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=options.rate, betas=(0.9, 0.99), weight_decay=0.01,
            fused=True,
        )  # fmt: skip
        self.step, self.seconds = 0, 0.0
        if going_on:
            self.load()

    def ids(self, captions: list[str]) -> torch.Tensor:
        """Token ids (B, WORDS_AT_MOST)."""
        return self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=WORDS_AT_MOST,
            return_tensors="pt",
        ).input_ids  # fmt: skip

    def save(self) -> None:
        """Write the state; the old one stays until the new one is whole."""
        flat = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        flat |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, slots in self.optimiser.state_dict()["state"].items():
            flat |= {f"optimiser.{index}.{k}": v for k, v in slots.items()}
        place = {"step": self.step, "seconds": self.seconds, "setup": self.options.setup}
        fresh = self.options.out / "state.new"
        save_file({k: v.contiguous() for k, v in flat.items()}, fresh, metadata={
            "place": json.dumps(place)})  # fmt: skip
        fresh.replace(self.options.out / "state.safetensors")
        (self.options.out / "state.json").write_text(
            json.dumps({**place, "words": self.words, "batch": self.options.batch}, indent=1)
        )

    def load(self) -> None:
        """Go on from the state on disk."""
        place = json.loads((self.options.out / "state.json").read_text())
        flat = load_file(self.options.out / "state.safetensors")
        for name, module in (("model.", self.model), ("average.", self.average)):
            part = {k.removeprefix(name): v for k, v in flat.items() if k.startswith(name)}
            module.load_state_dict(part)
        state = self.optimiser.state_dict()
        for key, value in flat.items():
            if key.startswith("optimiser."):
                _, index, slot = key.split(".")
                state["state"].setdefault(int(index), {})[slot] = value
        self.optimiser.load_state_dict(state)
        self.step, self.seconds = place["step"], place["seconds"]

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The moving average's loss on the tiles held out: full captions, the same noise always."""
        draw, losses = torch.Generator().manual_seed(1), []
        pixels = np.stack([t.pixels for t in self.held]).astype(np.float32) / 127.5 - 1
        x0 = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        ids = self.ids([t.caption for t in self.held])
        for _ in range(6):
            losses.append(flow_loss(self.average, x0, ids, draw).item())
        return float(np.mean(losses))

    @torch.no_grad()
    def sheet(self, path: Path, each: int = 6, steps: int = 16, scale: float = 3.0) -> None:
        """Samples of the moving average, one row a prompt."""
        prompts = [p for p in SHEET_PROMPTS.split("|") for _ in range(each)]
        ids, empty = self.ids(prompts), self.ids([""] * len(prompts))
        x = torch.randn(len(prompts), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
        for i in range(steps, 0, -1):
            s = torch.full((len(prompts),), i / steps)
            plain, told = self.average(x, s, empty), self.average(x, s, ids)
            x = x - (plain + scale * (told - plain)) / steps
        pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        rows = pixels.reshape(-1, each, SIZE, SIZE, 3).transpose(0, 2, 1, 3, 4)
        rows = rows.reshape(-1, 2, rows.shape[1], each * SIZE, 3).transpose(0, 2, 1, 3, 4)
        flat = rows.reshape(-1, 2 * each * SIZE, 3)
        Image.fromarray(flat).resize((flat.shape[1] * 2, flat.shape[0] * 2), 0).save(path)

    def advance(self, batches: Batches, draw: torch.Generator) -> float:
        """One step of training; the loss."""
        pixels, captions = batches.draw(self.options.batch)
        share = self.seconds / (60 * self.options.minutes)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.options.rate, self.step, share)
        loss = flow_loss(self.model, torch.from_numpy(pixels), self.ids(captions), draw)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.parameters()), 1 - decay
            )
        return loss.item()

    def measure(self, losses: list[float]) -> None:
        """Write one line of the log."""
        torch.set_num_threads(free_threads(self.options.threads))
        line = {"step": self.step, "minutes": round(self.seconds / 60, 2),
                "train": round(float(np.mean(losses)), 5),
                "held": round(self.held_out_loss(), 5)}  # fmt: skip
        with (self.options.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(line, flush=True)

    def go(self) -> None:
        """Train until the time is used up."""
        batches = Batches(self.tiles, set(self.words), seed=self.step)
        draw = torch.Generator().manual_seed(1000 + self.step)
        losses: list[float] = []
        saved = self.seconds
        while self.seconds < 60 * self.options.minutes:
            start = time.perf_counter()
            torch.set_num_threads(free_threads(self.options.threads))
            losses.append(self.advance(batches, draw))
            self.seconds += time.perf_counter() - start
            if self.step % self.options.every == 0:
                self.measure(losses)
                losses = []
            if self.seconds - saved > 60 * self.options.save_minutes:
                self.save()
                saved = self.seconds
            if self.step % (5 * self.options.every) == 0:
                self.sheet(self.options.out / f"sheet-{self.step:06d}.png")
        self.measure(losses or [float("nan")])
        self.save()
        self.sheet(self.options.out / "sheet-end.png")


def main() -> None:
    """Train."""
    options = parse()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(options)
    count = sum(p.numel() for p in run.model.parameters())
    print(
        f"{len(run.tiles)} tiles, {len(run.words)} words, {count / 1e6:.2f}M parameters", flush=True
    )
    run.go()


if __name__ == "__main__":
    main()
