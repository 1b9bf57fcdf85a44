"""The tasks on which numbers of epochs and ways to go on are compared: small networks, real data.

Nothing is trained or chosen on the images that are held out. They take the place of a test set
wherever a contender has looked at the validation data.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from onecycle import DataLoaders, Learner, accuracy
from onecycle.data import cifar10, digits, mnist

Pair = tuple[Tensor, Tensor]
SGD = partial(torch.optim.SGD, momentum=0.9)
ADAMW = torch.optim.AdamW
WD = {"sgd": 1e-4, "adamw": 0.01}


@dataclass(frozen=True)
class Split:
    """Images and labels: to train on, to validate, and held out."""

    train: Pair
    valid: Pair
    held: Pair

    @property
    def held_out(self) -> list[Pair]:
        """What is held out, as batches."""
        x, y = self.held
        return list(zip(x.split(2000), y.split(2000), strict=True))


@dataclass(frozen=True)
class Task:
    """Data, a network, an optimizer and the peak of its 1cycle, which was chosen by hand.

    `unit` is the number of epochs that the longer runs are multiples of.
    """

    name: str
    data: Callable[[int], Split]
    network: Callable[[], nn.Module]
    opt: str
    lr: float
    seeds: int = 5
    unit: int = 4
    batch: int = 64

    def learner(self, seed: int, **options: Any) -> Learner:
        """Return a fresh learner; the seed is of weights, order, and of what is drawn of data."""
        split = self.data(seed)
        torch.manual_seed(seed)
        data = DataLoaders.from_tensors(
            *split.train, valid=split.valid, batch_size=self.batch, seed=seed
        )
        assert data.valid is not None
        data.valid.batch_size = 2000  # type: ignore[attr-defined]
        opt = SGD if self.opt == "sgd" else ADAMW
        settings = {"wd": WD[self.opt], **options}
        return Learner(data, self.network(), opt_func=opt, metrics=[accuracy], **settings)


def mlp(inputs: int, *hidden: int, norm: bool = False) -> nn.Module:
    """Linear layers, with batch norm between or without."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden:
        layers += [nn.Linear(inputs, width), *([nn.BatchNorm1d(width)] if norm else []), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, 10))


def cnn(*widths: int) -> nn.Module:
    """3x3 convolutions of stride 2, each with batch norm, and a mean."""
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), widths, strict=False):
        conv = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


@cache
def _mnist() -> tuple[Pair, Pair]:
    data: Any = mnist()
    return data.train.tensors, data.valid.tensors


def mnist_4000(seed: int, noise: float = 0.0) -> Split:
    """4,000 training images of MNIST, other ones for each seed; of the test images 4,000 and 6,000.

    The share `noise` of the training labels is drawn anew, so that nine tenths of it are wrong.
    """
    (x, y), (vx, vy) = _mnist()
    generator = torch.Generator().manual_seed(seed + 100)
    chosen = torch.randperm(len(x), generator=generator)[:4000]
    x, y = x[chosen], y[chosen].clone()
    drawn = torch.rand(len(y), generator=generator) < noise
    y[drawn] = torch.randint(0, 10, (int(drawn.sum()),), generator=generator)
    return Split((x, y), (vx[:4000], vy[:4000]), (vx[4000:], vy[4000:]))


@cache
def _cifar() -> tuple[Pair, Pair]:
    data: Any = cifar10()
    return data.train.tensors, data.valid.tensors


def cifar_5000(seed: int) -> Split:
    """5,000 training images of CIFAR-10, other ones for each seed; of the test images 2 x 2,000."""
    (x, y), (vx, vy) = _cifar()
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed + 100))[:5000]
    test = torch.randperm(len(vx), generator=torch.Generator().manual_seed(0))
    valid, held = test[:2000], test[2000:4000]
    return Split((x[chosen], y[chosen]), (vx[valid], vy[valid]), (vx[held], vy[held]))


def few_digits(seed: int) -> Split:
    """300 of the digits that come with the package, and 200 and 200 others."""
    x, y = digits().train.tensors  # type: ignore[attr-defined]
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    first, second, third = (chosen[a:b] for a, b in ((0, 300), (300, 500), (500, 700)))
    return Split((x[first], y[first]), (x[second], y[second]), (x[third], y[third]))


MLP, BN_MLP = partial(mlp, 784, 128, 64), partial(mlp, 784, 128, 64, norm=True)
NOISY = partial(mnist_4000, noise=0.2)
TASKS = [
    Task("mnist-sgd", mnist_4000, MLP, "sgd", 0.1),
    Task("mnist-adamw_bn", mnist_4000, BN_MLP, "adamw", 0.01),
    Task("noise-sgd", NOISY, MLP, "sgd", 0.1),
    Task("noise-adamw_bn", NOISY, BN_MLP, "adamw", 0.01),
    Task("cifar-adamw_bn", cifar_5000, partial(cnn, 16, 32, 64), "adamw", 0.01, seeds=3),
]
# What the tests can afford.
SMOKE = [
    Task("digits-sgd", few_digits, partial(mlp, 64, 16), "sgd", 0.1, seeds=2, unit=1, batch=100)
]
