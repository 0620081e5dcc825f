"""Train a small byte-level GPT on the sources of Python's own standard library.

    python examples/charlm.py                        one peer
    gossamer launch -n 4 examples/charlm.py          four peers, one model

Every peer draws its own random batches; validation is on files that no peer trains on.
"""

import argparse
import math
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.engine import Engine

CONTEXT_BYTES = 64
TEXT_LIMIT_BYTES = 6_000_000
HELD_OUT_EVERY = 20  # files
VALIDATION_WINDOWS = 512


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        split = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*split, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, width: int = 96, layers: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT_BYTES, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, 256, bias=False)
        self.head.weight = self.bytes.weight
        nn.init.normal_(self.bytes.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.bytes(x) + self.places)))


def read_text() -> tuple[Tensor, Tensor]:
    """The training and the held-out text."""
    root = Path(sysconfig.get_path("stdlib"))
    unwanted = {"site-packages", "dist-packages", "test", "tests", "lib2to3", "idlelib"}
    files = [p for p in sorted(root.rglob("*.py")) if not unwanted & set(p.relative_to(root).parts)]
    train, held_out = bytearray(), bytearray()
    for number, path in enumerate(files):
        if len(train) < TEXT_LIMIT_BYTES:
            (train if number % HELD_OUT_EVERY else held_out).extend(path.read_bytes())
    return torch.frombuffer(train, dtype=torch.uint8), torch.frombuffer(held_out, dtype=torch.uint8)


def windows(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and targets, each [windows, CONTEXT_BYTES]."""
    chosen = text[starts[:, None] + torch.arange(CONTEXT_BYTES + 1)].long()
    return chosen[:, :-1], chosen[:, 1:]


def loss_of(model: GPT, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).view(-1, 256), y.reshape(-1))


@torch.no_grad()
def validate(model: GPT, text: Tensor) -> float:
    starts = torch.linspace(0, len(text) - CONTEXT_BYTES - 1, VALIDATION_WINDOWS).long()
    return loss_of(model, *windows(text, starts)).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=2, help="sequences per step and peer")
    parser.add_argument("--lr", type=float, default=4.5e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(1)  # the fastest for so small a model
    torch.manual_seed(args.seed)
    train, held_out = read_text()
    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min(1.0, (i + 1) / 50) * (0.55 + 0.45 * math.cos(math.pi * i / args.steps)),
    )
    engine = Engine(model, optimizer, compress="1/16:1bit", local_steps=5, total_steps=args.steps)
    with engine:
        generator = torch.Generator().manual_seed(1000 * args.seed + engine.rank)
        for _ in range(args.steps):
            starts = torch.randint(len(train) - CONTEXT_BYTES, (args.batch,), generator=generator)
            optimizer.zero_grad()
            loss = loss_of(model, *windows(train, starts))
            loss.backward()
            engine.step(loss)
            schedule.step()
        engine.drain()
        engine.record(val_loss=(val_loss := validate(model, held_out)))
        print(f"validation loss {val_loss:.3f} nats per byte")


if __name__ == "__main__":
    main()
