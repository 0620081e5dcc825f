"""Train a small CNN with batch normalization on scikit-learn's handwritten digits.

    python examples/digits.py                        one peer
    gossamer launch -n 4 examples/digits.py          four peers, one model

The peers share out the batches between them with `engine.shard`; each tests the shared model on
all test images.
"""

import argparse
import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.engine import Engine

TEST_IMAGES = 360
Batch = tuple[Tensor, Tensor]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def read_digits(seed: int) -> tuple[Batch, Batch]:
    """Training and test images [n, 1, 8, 8] with their labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("this example needs scikit-learn: pip install scikit-learn")
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order[TEST_IMAGES:], order[:TEST_IMAGES]
    return (images[train], labels[train]), (images[test], labels[test])


def batches(data: Batch, size: int, epochs: int, seed: int) -> Iterator[Batch]:
    """The same batches in the same order on every peer; `engine.shard` picks this peer's."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(data[0]), generator=generator).split(size):
            yield data[0][rows], data[1][rows]


@torch.no_grad()
def test(model: nn.Module, data: Batch) -> tuple[float, float]:
    """Mean loss and accuracy."""
    model.eval()
    scores = model(data[0])
    accuracy = (scores.argmax(1) == data[1]).float().mean()
    return float(F.cross_entropy(scores, data[1])), float(accuracy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32, help="images per step and peer")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train, held_out = read_digits(args.seed)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    with Engine(model, optimizer) as engine:
        for x, y in engine.shard(batches(train, args.batch, args.epochs, args.seed)):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            engine.step(loss)
        engine.drain()
        val_loss, accuracy = test(model, held_out)
        engine.record(val_loss=val_loss, test_accuracy=accuracy)
        print(f"test accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
