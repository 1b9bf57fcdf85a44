"""`python -m onecycle`: find a learning rate and train by one cycle, on real handwritten digits."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from onecycle import batch
from onecycle.data import DATA_SETS, DataLoaders
from onecycle.learner import Learner
from onecycle.metrics import accuracy
from onecycle.models import resnet9

EPOCHS = {"digits": 8, "mnist": 3, "fashion_mnist": 5, "cifar10": 8}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; return the exit status."""
    options = _parser().parse_args(argv)
    epochs = options.epochs or EPOCHS[options.data]
    try:
        data = DATA_SETS[options.data](device=options.device, seed=options.seed)
        learn = _learner(data, options)
        print(f"data: {options.data}, {data.steps_per_epoch} batches an epoch, on {learn.device}")
        lr = options.lr or _find_lr(learn)
        print(f"\n1cycle: fit_one_cycle({epochs}, {lr:.1e})")
        learn.fit_one_cycle(epochs, lr)
        print(f"\nfor comparison, the same model at a constant rate: fit({epochs}, {lr:.1e})")
        constant = _learner(data, options)
        constant.fit(epochs, lr)
        pictures = _draw(learn, options.out)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        print(f"onecycle: {error}", file=sys.stderr)
        return 1
    print(f"\npictures in {options.out}: {', '.join(pictures)}")
    return 0


def small_cnn(channels: int, classes: int, width: int = 16) -> nn.Sequential:
    """Return three 3 x 3 convolutions with batch norm, average pooling and a linear layer."""
    sizes = [channels, width, 2 * width, 4 * width]
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(sizes)):
        convolution = nn.Conv2d(before, after, 3, stride=min(i + 1, 2), padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], classes)]
    return nn.Sequential(*layers, *head)


def _learner(data: DataLoaders, options: argparse.Namespace) -> Learner:
    """Return a fresh learner; the seed makes every one the same."""
    torch.manual_seed(options.seed)
    model = resnet9(width=32) if options.data == "cifar10" else small_cnn(1, 10)
    return Learner(data, model, metrics=[accuracy], device=options.device)


def _find_lr(learn: Learner) -> float:
    found = learn.lr_find()
    if found.confidence == "none":
        raise ValueError("lr_find has no suggestion: give --lr")
    return float(found)


def _draw(learn: Learner, folder: Path) -> list[str]:
    """Write the pictures without a window, and return their names."""
    import matplotlib as mpl

    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    recorder = learn.recorder
    pictures = {
        "losses.png": recorder.plot_losses(),
        "schedule.png": recorder.plot_lr(show_moms=True)[0],
    }
    if recorder.lr_find is not None:
        pictures["lr_find.png"] = recorder.plot()
    for name, ax in pictures.items():
        ax.figure.savefig(folder / name, dpi=110)
    return sorted(pictures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m onecycle",
        description="Find a learning rate, train by one cycle, and train the same model at the "
        "constant rate for comparison. Prints two tables and draws three pictures.",
    )
    add = parser.add_argument
    add(
        "--data",
        choices=sorted(DATA_SETS),
        default="digits",
        help="digits ships with the package and needs no network; the others are downloaded, or "
        "read from the folder that ONECYCLE_DATA names (default: digits)",
    )
    defaults = ", ".join(f"{name} {n}" for name, n in EPOCHS.items())
    add("--epochs", type=_epochs, help=f"epochs of each training (default: {defaults})")
    add("--lr", type=_rate, help="largest learning rate (default: what lr_find suggests)")
    add("--seed", type=int, default=0, help="of weights and batch order (default: 0)")
    add("--out", type=Path, default=Path("onecycle-demo"), help="folder of the pictures")
    add("--device", type=_device, default=batch.default_device(), help="cpu, cuda or mps")
    return parser


def _epochs(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return rate


def _device(text: str) -> torch.device:
    try:
        return batch.as_device(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
