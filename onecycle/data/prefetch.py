"""Moving batches to an accelerator on a stream of their own, beside the step that is under way.

Nothing is read ahead, so the place in the data is always that of the training. When a batch is
asked for, the step before it has only been queued: the copy runs beside it, and the stream of the
training waits for the copy where it needs the batch. What takes long to read belongs into workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from onecycle.batch import to_device


def mover(device: torch.device) -> Callable[[Any], Any]:
    """Return what moves a batch to `device`: on a side stream where the device has streams.

    >>> mover(torch.device("cpu"))({"x": torch.ones(2)})
    {'x': tensor([1., 1.])}
    """
    if device.type == "cpu" or not hasattr(torch.get_device_module(device), "Stream"):
        return partial(to_device, device=device)
    return SideStream(device)


class SideStream:
    """Moves tensors on a stream of its own, from pinned memory.

    Args:
        device: where to.
        pin: copy a tensor to pinned memory first, unless it is there: from elsewhere the host would
            wait for the copy.
    """

    def __init__(self, device: torch.device, *, pin: bool = True) -> None:
        self._device = device
        self._pin = pin
        self._streams = torch.get_device_module(device)
        self._side = self._streams.Stream(device)

    def __call__(self, batch: Any) -> Any:
        """Return `batch` on the device, safe to use on the current stream."""
        moved = self._moved(batch)
        self._streams.current_stream(self._device).wait_stream(self._side)
        return moved

    def _moved(self, batch: Any) -> Any:
        if isinstance(batch, Tensor):
            here = batch.device.type == "cpu"
            return self._copied(batch) if here else to_device(batch, self._device)
        if isinstance(batch, Mapping):
            return {key: self._moved(value) for key, value in batch.items()}
        if type(batch) in (tuple, list):
            return type(batch)(map(self._moved, batch))
        # What is inside of other objects cannot be marked as used by another stream.
        return to_device(batch, self._device)

    def _copied(self, tensor: Tensor) -> Tensor:
        with self._streams.stream(self._side):
            pinned = self._pin and tensor.layout is torch.strided
            source = tensor.pin_memory() if pinned else tensor
            moved = source.to(self._device, non_blocking=True)
        if self._device.type != "cpu":
            # Else its memory could be given to the next copy while the training still reads it.
            moved.record_stream(self._streams.current_stream(self._device))
        return moved
