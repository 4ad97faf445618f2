# SPDX-License-Identifier: Apache-2.0
"""Train a feature network and write it beside the metrics, in float16.

    python train.py --name fashion --data fashion_mnist.npz --epochs 8

Writes weights/NAME/model.safetensors and config.json; prints the accuracy on pictures held out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from data import Split, load
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shielded.metrics.smallnet import Layers

WEIGHTS = Path(__file__).parents[2] / "src" / "shielded" / "metrics" / "weights"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, choices=["sprites", "fashion"])
    parser.add_argument("--data", required=True, help="the archive of pictures")
    parser.add_argument("--to", type=Path, default=WEIGHTS, help="folder of all networks")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def with_norms(net: Layers) -> Layers:
    """The same network with batch normalisation behind every convolution, for training."""
    parts: list[nn.Module] = []
    for layer in net.body:
        parts.append(layer)
        if isinstance(layer, nn.Conv2d):
            parts.append(nn.BatchNorm2d(layer.out_channels))
    net.body = nn.Sequential(*parts)
    return net


def without_norms(net: Layers) -> Layers:
    """The same function with every normalisation folded into its convolution."""
    parts = list(net.eval().body)
    folded: list[nn.Module] = []
    for layer, after in zip(parts, [*parts[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
            folded.append(fuse_conv_bn_eval(layer, after))
        elif not isinstance(layer, nn.BatchNorm2d):
            folded.append(layer)
    net.body = nn.Sequential(*folded)
    return net


def batches(split: Split, size: int, draw: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: shuffled, half of the pictures mirrored, shifted by up to two pixels."""
    for chosen in torch.randperm(len(split.x), generator=draw).split(size):
        if len(chosen) < 2:  # nothing to normalise over
            continue
        x, y = split.x[chosen], split.y[chosen]
        turn = torch.rand(len(x), generator=draw) < 0.5
        x = torch.where(turn[:, None, None, None], x.flip(3), x)
        down, right = torch.randint(0, 5, (2,), generator=draw).tolist()
        side = x.shape[-1]
        x = pad(x, (2, 2, 2, 2), mode="replicate")
        yield x[:, :, down : down + side, right : right + side], y


def train(net: Layers, split: Split, options: argparse.Namespace) -> None:
    """AdamW with one cycle of the learning rate."""
    steps = options.epochs * -(-len(split.x) // options.batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=options.rate, weight_decay=0.02)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.rate, steps, pct_start=0.2)
    draw = torch.Generator().manual_seed(options.seed)
    for epoch in range(options.epochs):
        start, losses = time.perf_counter(), []
        net.train()
        for x, y in batches(split, options.batch, draw):
            with torch.autocast("cpu", torch.bfloat16):
                logits = net(x.to(memory_format=torch.channels_last))
            loss = cross_entropy(logits.float(), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            cycle.step()
            losses.append(loss.item())
        print(
            f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}, held out "
            f"{accuracy(net, split.x_held, split.y_held):.4f}, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )


@torch.no_grad()
def accuracy(net: Layers, x: Tensor, y: Tensor) -> float:
    """The share of pictures whose likeliest class is right, in float32."""
    net.eval()
    found = torch.cat([net(part).argmax(1) for part in x.split(500)])
    return float((found == y).float().mean())


def main() -> None:
    """Train, fold, round to float16, measure what is stored, write."""
    options = parse()
    torch.manual_seed(options.seed)
    split = load(options.name, options.data)
    net = with_norms(Layers(split.x.shape[1], len(split.classes)))
    net.to(memory_format=torch.channels_last)
    train(net, split, options)
    net = without_norms(net).half().float()
    held = accuracy(net, split.x_held, split.y_held)
    folder = options.to / options.name
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().contiguous() for k, v in net.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)
    config = {"classes": split.classes, "channels": split.x.shape[1], "size": split.x.shape[2]}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    count = sum(p.numel() for p in net.parameters())
    print(f"{count} parameters; held out, as stored: {100 * held:.2f}%")


if __name__ == "__main__":
    main()
