"""What would fail at the end of the first epoch, found before its first step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from onecycle import batch as batches
from onecycle.data.in_memory import InMemoryLoader
from onecycle.data.sharding import PartSampler
from onecycle.distributed import PeerError
from onecycle.notes import noted

if TYPE_CHECKING:
    from onecycle.trainer import Trainer


class First:
    """The first batch of a loader."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        """Yield it."""
        return islice(iter(self.loader), 1)


def check_validation(learn: Trainer) -> None:
    """Refuse a model or metric that fails on the validation data; it leaves no trace.

    A metric of the whole set may fail on one batch and be right, so then the whole set is tried.

    Raises:
        Exception: whatever fails.
    """
    valid = learn.data.valid
    if valid is None or isinstance(valid, Iterator):  # to look at that would be to take from it
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a metric that sees a part of the set
            # What fails in one process only must not send it through the whole set by itself.
            learn.evaluate(First(valid), metrics={} if learn.network.sharded else None)
    except PeerError:
        raise
    except Exception:
        if learn.network.sharded:
            raise
        with noted("on the validation data, which are looked at before the first step"):
            learn.evaluate(valid)


def check_last_batch(learn: Trainer) -> None:
    """Refuse a last batch of one sample where batch norm cannot train on it; it leaves no trace.

    Raises:
        ValueError: it would fail at the end of the epoch.
    """
    if learn.network.sharded:  # the last batch of each process may be of another size
        return
    train = learn.data.train
    last = _last_of_one(train)
    inside = (part for module in learn.modules for part in module.modules())
    normed = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in inside)  # noqa: SLF001
    if last is None or not normed:
        return
    what, make = last
    # A compiled model would be compiled for this batch alone, and raise errors of torch's own.
    eager, autocast = torch.compiler.set_stance("force_eager"), learn.network.autocast()
    with learn.looking(train), torch.no_grad(), eager, autocast:
        inputs, _ = batches.split(batches.to_device(make(), learn.device))
        try:
            learn.network(inputs)
        except ValueError as error:
            raise ValueError(
                f"data: {what} leave a last batch of one, on which batch norm cannot train "
                f"({error}); choose another batch_size, or drop_last=True"
            ) from error


def _last_of_one(train: Any) -> tuple[str, Callable[[], Any]] | None:
    """Return the data in words and what makes the last batch, if it is known to be one sample."""
    if isinstance(train, (list, tuple)):
        of_one = batches.samples(*batches.split(train[-1])) == 1
        return (f"the {len(train)} batches of train", lambda: train[-1]) if of_one else None
    if isinstance(train, InMemoryLoader):
        if train.drop_last or not _leaves_one(train.n, train.batch_size, train.parts):
            return None
        return _in_words(train.n, train.batch_size, train.parts), lambda: tuple(
            rows[:1] for rows in next(train.batches(len(train) - 1))
        )
    if type(train) is not DataLoader or isinstance(train.dataset, IterableDataset):
        return None
    cut: Any = train.batch_sampler if isinstance(train.batch_sampler, PartSampler) else train
    size, drawn, parts = cut.batch_size, len(cut.sampler), getattr(cut, "parts", 1)
    if size is None or cut.drop_last or not _leaves_one(drawn, size, parts):
        return None
    return _in_words(drawn, size, parts), lambda: train.collate_fn(
        [train.dataset[next(iter(train.sampler))]]
    )


def _leaves_one(samples: int, size: int, parts: int) -> bool:
    """Tell whether a process has one sample of the last batch; what it has not is filled in.

    >>> [n for n in range(8, 17) if _leaves_one(n, size=8, parts=2)]
    [9, 10, 11]
    """
    left = samples % size
    return left > 0 and left // parts <= 1


def _in_words(samples: int, size: int, parts: int) -> str:
    among = f" among {parts} processes" if parts > 1 else ""
    return f"{samples} samples in batches of batch_size={size}{among}"
