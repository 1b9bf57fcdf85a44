"""Augmentation of whole batches of images (N, C, H, W), without a loop over samples.

Each function here returns one of a batch and a generator. Whatever has a parameter `generator` is
given one, on the device of the batch, seeded by (seed, epoch, batch); a function that has none is
called with the batch alone and must not be random, or a resumed run would not be the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onecycle import checks

MODES = ("reflect", "constant")
Function = Callable[..., Tensor]
Augment = Function | Iterable[Function]


def random_crop(padding: int = 4, mode: str = "reflect") -> Function:
    """Return an augmentation that pads each image and cuts it out anywhere, in its own size.

    Args:
        padding: pixels on each side, so many that an image is moved at most.
        mode: "reflect" mirrors the image at its edges, "constant" pads with zeros.

    Source: He et al., arXiv 1512.03385, section 4.2.

    >>> x = torch.rand(2, 3, 8, 8)
    >>> random_crop(2)(x, torch.Generator()).shape
    torch.Size([2, 3, 8, 8])
    """
    checks.integer("padding", padding)
    return partial(_crop, padding=padding, mode=checks.choice("mode", mode, MODES))


def flip(p: float = 0.5) -> Function:
    """Return an augmentation that mirrors each image, left to right, with probability `p`.

    >>> flip(1.0)(torch.tensor([[[[1.0, 2.0]]]]), torch.Generator())
    tensor([[[[2., 1.]]]])
    """
    return partial(_flip, p=checks.real("p", p, low=0.0, high=1.0))


def cutout(size: int) -> Function:
    """Return an augmentation that sets a square of each image to zero, the mean if standardised.

    Args:
        size: pixels of a side; its centre is anywhere in the image, so it may lie partly outside.

    Source: DeVries and Taylor, arXiv 1708.04552.

    >>> cutout(2)(torch.ones(5, 1, 8, 8), torch.Generator()).sum((1, 2, 3)).amin() >= 60
    tensor(True)
    """
    return partial(_cutout, size=checks.integer("size", size))


def as_augmentations(value: Any) -> tuple[Function, ...]:
    """Return one or several functions as a tuple.

    Raises:
        TypeError: something that cannot be called with a batch.
    """
    given = (value,) if callable(value) else checks.several("augment", value)
    for function in given:
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"augment must be a function of a batch, or several, got {function!r}")
        if function in (random_crop, flip, cutout):
            name = getattr(function, "__name__", "")
            raise TypeError(f"augment: {name} makes a function of a batch, write {name}(...)")
    return given


def chained(functions: Iterable[Function]) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Return a function of a batch and a generator that applies all, one after the other."""
    steps = [(function, _takes_generator(function)) for function in functions]

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        for function, draws in steps:
            x = _checked(function, x, function(x, generator=generator) if draws else function(x))
        return x

    return apply


def _takes_generator(function: Function) -> bool:
    try:
        return "generator" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins do not say what they take
        return False


def _checked(function: Function, x: Tensor, made: Any) -> Tensor:
    """Return what `function` has made of `x`, if it is as many samples."""
    if not isinstance(made, Tensor) or made.shape[:1] != x.shape[:1]:
        found = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise ValueError(
            f"augment: {getattr(function, '__name__', function)} must return a tensor of {len(x)} "
            f"samples for a batch {tuple(x.shape)}, got {found}"
        )
    return made


def _crop(x: Tensor, generator: torch.Generator, *, padding: int, mode: str) -> Tensor:
    n, c, h, w = _images("random_crop", x)
    if mode == "reflect" and padding >= min(h, w):
        raise ValueError(
            f"random_crop: padding={padding} must be below the size {h} x {w} of the images, or "
            'take mode="constant"'
        )
    padded = functional.pad(x, (padding,) * 4, mode=mode)
    sample, channel, row, column = padded.stride()
    shift = torch.randint(2 * padding + 1, (2, n), generator=generator, device=x.device)
    first = torch.arange(n, device=x.device) * sample + shift[0] * row + shift[1] * column
    # Every image that begins anywhere in memory, as views which overlap: to select some of them
    # copies whole rows, in half the time of indexing by rows and columns.
    last = (n - 1) * sample + 2 * padding * (row + column)
    everywhere = padded.as_strided((last + 1, c, h, w), (1, channel, row, column))
    return everywhere.index_select(0, first)


def _flip(x: Tensor, generator: torch.Generator, *, p: float) -> Tensor:
    n, _, _, w = _images("flip", x)
    columns = torch.arange(w, device=x.device)
    mirrored = torch.rand(n, 1, generator=generator, device=x.device) < p
    chosen = torch.where(mirrored, w - 1 - columns, columns)
    return x.gather(3, chosen[:, None, None, :].expand(x.shape))


def _cutout(x: Tensor, generator: torch.Generator, *, size: int) -> Tensor:
    n, _, h, w = _images("cutout", x)

    def inside(length: int) -> Tensor:
        centre = torch.randint(length, (n, 1), generator=generator, device=x.device)
        place = torch.arange(length, device=x.device) - centre + size // 2
        return (place >= 0) & (place < size)

    rows, columns = inside(h), inside(w)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def _images(name: str, x: Tensor) -> tuple[int, int, int, int]:
    if x.ndim != 4:
        raise ValueError(
            f"augment: {name} needs a batch of images (N, C, H, W), got {tuple(x.shape)}; reshape "
            "the inputs, or leave it out"
        )
    n, c, h, w = x.shape
    return n, c, h, w
