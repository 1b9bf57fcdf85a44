"""Test-time augmentation: the mean of what a model says of several views of each sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor

from onecycle import batch as batches
from onecycle import checks
from onecycle.data.augment import Augment, as_augmentations, chained
from onecycle.data.in_memory import InMemoryLoader
from onecycle.data.order import batch_seeds

Model = Callable[[Any], Any]


def mean_of(
    model: Model,
    activation: Callable[[Tensor], Tensor] | None,
    augment: Callable[[Tensor, torch.Generator], Tensor],
    n: int,
    beta: float,
    seed: int,
) -> Model:
    """Return a function of a batch of inputs: the mean prediction over `n` views and the plain one.

    With p_0 the prediction of the inputs as they are and p_i that of view i, both after the
    activation: (1 - beta) mean(p_1 ... p_n) + beta p_0. The views of batch b, from 0, are drawn by
    `n` seeds that are a function of (seed, b).

    Raises:
        TypeError: inputs or a model's output that have no tensor to work on.

    >>> run = mean_of(lambda x: x, None, lambda x, generator: x + 1, n=2, beta=0.25, seed=0)
    >>> run(torch.zeros(3))
    tensor([0.7500, 0.7500, 0.7500])
    """
    batch = count()

    def one(inputs: Any) -> Tensor:
        pred = batches.widened(model(inputs))
        if not isinstance(pred, Tensor):
            raise TypeError(
                f"tta: the model must return a tensor to be averaged, got {batches.shape(pred)}"
            )
        return activation(pred) if activation else pred

    def run(inputs: Any) -> Tensor:
        x, others = _first(inputs)
        generator = torch.Generator(x.device)
        total = torch.zeros((), device=x.device)
        for number in batch_seeds(n, seed, next(batch)):
            # Of a copy, because an augmentation or a model may write into it.
            view = augment(x.clone(), generator.manual_seed(number))
            total = total + one([view, *others] if others else view)
        return torch.lerp(total / n, one(inputs), beta)

    return run


def augmentation(augment: Augment | None, train: Any) -> Callable[..., Tensor]:
    """Return `augment`, or that of training data in memory, as one function.

    Raises:
        ValueError: there is none.
    """
    own = train.augment if isinstance(train, InMemoryLoader) else ()
    given = own if augment is None else as_augmentations(augment)
    if not given:
        raise ValueError(
            "augment must be given, such as augment=flip(): the training data are not in memory "
            "with an augmentation of their own"
        )
    return chained(given)


def seed_of(seed: int | None, train: Any) -> int:
    """Return `seed`, or that of training data in memory, or 0."""
    own = train.seed if isinstance(train, InMemoryLoader) else 0
    return own if seed is None else checks.integer("seed", seed, low=0)


def weight_of(beta: float | None, n: int) -> float:
    """Return the weight of the plain prediction; None weighs all alike.

    >>> weight_of(None, 4)
    0.2
    """
    return 1 / (n + 1) if beta is None else checks.real("beta", beta, low=0.0, high=1.0)


def _first(inputs: Any) -> tuple[Tensor, list[Any]]:
    """Return the inputs that are augmented, the first, and the others."""
    several = isinstance(inputs, (tuple, list)) and len(inputs) > 0
    x, *others = inputs if several else [inputs]
    if isinstance(inputs, Mapping) or not isinstance(x, Tensor):
        raise TypeError(
            "tta: the inputs must be a tensor, or several of which the first is augmented, got "
            f"{batches.shape(inputs)}"
        )
    return x, others
