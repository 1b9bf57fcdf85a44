"""Standardising the inputs of a batch at the last moment, for each channel."""

from typing import Any

import torch
from torch import Tensor

from onecycle import checks
from onecycle.batch import as_tensor


class Normalize:
    """(x - mean) / std for each channel; bytes are cast to float32 / 255 before.

    Args:
        stats: (mean, std), each a number or one for each channel; of bytes after the division, so
            that the same pair fits an image of either kind.
        x: the inputs (N, C, ...) of the whole set.

    Raises:
        TypeError: inputs that are neither bytes nor floats.
        ValueError: no such pair, another number of channels, or a std that is not above 0.

    >>> images = torch.tensor([[0, 255]], dtype=torch.uint8)
    >>> Normalize((0.5, 0.5), images)(images)
    tensor([[-1.,  1.]])
    """

    def __init__(self, stats: Any, x: Tensor) -> None:
        mean, std = checks.pair("normalize", stats, "(mean, std)")
        self.bytes = x.dtype == torch.uint8
        if not (self.bytes or x.is_floating_point()):
            raise TypeError(
                f"normalize: the inputs must be uint8 or floats, got {x.dtype}; cast them, or "
                "leave normalize out"
            )
        dtype = torch.float32 if self.bytes else x.dtype
        self.mean, self.std = _column("mean", mean, x, dtype), _column("std", std, x, dtype)
        if not (self.std > 0).all():
            raise ValueError(f"normalize: every std must be above 0, got {std!r}")

    def __call__(self, x: Tensor) -> Tensor:
        """Return a batch standardised; floats are overwritten, so it must be a copy."""
        x = x.float().div_(255) if self.bytes else x
        return x.sub_(self.mean).div_(self.std)


def _column(name: str, value: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a number for each channel, in a shape that goes with (N, C, ...)."""
    numbers = as_tensor(value, f"normalize: {name}").flatten()
    channels = x.shape[1] if x.ndim > 1 else 1
    if len(numbers) not in (1, channels) or not numbers.isfinite().all():
        raise ValueError(
            f"normalize: {name} must be a number, or one for each of the {channels} channels of "
            f"inputs {tuple(x.shape)}, got {value!r}"
        )
    shape = (1, -1) + (1,) * (x.ndim - 2) if x.ndim > 1 else (-1,)
    return numbers.to(x.device, dtype).view(shape)
