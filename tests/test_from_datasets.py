"""Loaders of map-style data sets, and the same data read into memory."""

import random

import numpy as np
import pytest
import torch
from helpers import Noisy, mlp, same, weights
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from onecycle import DataLoaders, Learner
from onecycle.data import InMemoryLoader, flip
from onecycle.data.datasets import workers_for

X, Y = torch.arange(90.0).view(30, 3), torch.arange(30) % 3
SET = TensorDataset(X, Y)


class Items(Dataset):
    """Items by a function of their number."""

    def __init__(self, item, n=30):
        self.item, self.n = item, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.item(i)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


def epoch(loader, number):
    (loader if isinstance(loader, InMemoryLoader) else loader.sampler).set_epoch(number)
    return [list(batch) for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_in_memory_changes_nothing_but_the_speed(workers):
    items = Items(lambda i: (np.full((2, 2), i), i, float(i)))
    options = {"batch_size": 8, "seed": 3, "num_workers": workers}
    slow = DataLoaders.from_datasets(items, SET, **options)
    fast = DataLoaders.from_datasets(items, SET, in_memory=True, **options)
    for number in range(2):
        assert same(epoch(slow.train, number), epoch(fast.train, number))
    assert same([list(b) for b in slow.valid], [list(b) for b in fast.valid])


def test_a_run_is_the_same_from_memory(digit_tensors):
    runs = []
    for in_memory in (True, False):
        x, y = digit_tensors
        train, valid = TensorDataset(x[:300], y[:300]), TensorDataset(x[300:400], y[300:400])
        learn = Learner(DataLoaders.from_datasets(train, valid, in_memory=in_memory), mlp())
        torch.manual_seed(5)
        learn.fit_one_cycle(2, 1e-2)
        runs.append([weights(learn), learn.recorder.losses, learn.validate()])
    assert same(*runs)


def test_the_order_draws_from_no_global_generator():
    before = torch.get_rng_state()
    data = DataLoaders.from_datasets(SET, batch_size=8)
    orders = [torch.cat([y[:, 0] for y, _ in epoch(data.train, n)]).tolist() for n in range(3)]
    assert len(set(map(tuple, orders))) == 3
    assert torch.equal(before, torch.get_rng_state())


def test_defaults_fit_data_and_machine(monkeypatch):
    import multiprocessing
    import os

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "fork")
    of_tensors = ConcatDataset([Subset(SET, [1, 2]), SET])
    assert [workers_for(d, None) for d in (SET, of_tensors, Items(int))] == [0, 0, 8]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert workers_for(Items(int), None) == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 5}, raising=False)
    assert [workers_for(Items(int), n) for n in (None, 1)] == [3, 1]
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
    assert workers_for(Items(int), None) == 0


def test_no_workers_persist():
    data = DataLoaders.from_datasets(SET, SET, num_workers=1)
    assert not any(part.persistent_workers for part in (data.train, data.valid))
    assert data.train.pin_memory is torch.cuda.is_available()


def test_items_that_need_gradients_are_kept_without():
    items = Items(lambda i: torch.full((2,), float(i), requires_grad=True) * 2, 5)
    (kept,) = DataLoaders.from_datasets(items, in_memory=True, num_workers=0).train.tensors
    assert not kept.requires_grad
    assert kept[:, 0].tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_items_are_read_once_and_leave_no_trace():
    items, before = Items(lambda i: i, 200), torch.get_rng_state()
    seen = []
    items.item = lambda i: seen.append(i) or torch.tensor(i)
    (kept,) = DataLoaders.from_datasets(items, in_memory=True, num_workers=0).train.tensors
    assert kept.tolist() == list(range(200))
    assert seen.count(100) == 1
    assert torch.equal(before, torch.get_rng_state())


def test_a_collate_function_is_used():
    data = DataLoaders.from_datasets(
        Items(lambda i: {"x": i, "y": -i}),
        in_memory=True,
        collate_fn=lambda items: tuple(torch.tensor([item[k] for item in items]) for k in "xy"),
    )
    assert [part.tolist()[7] for part in data.train.tensors] == [7, -7]


def test_what_is_read_can_be_augmented():
    images = Items(lambda i: (torch.full((1, 2, 2), i, dtype=torch.uint8), i))
    data = DataLoaders.from_datasets(
        images, images, in_memory=True, augment=flip(), normalize=(0, 1 / 255)
    )
    x, y = next(iter(data.valid))
    assert torch.equal(x[:, 0, 0, 0].round(), y.float())
    assert data.train.augment
    assert not data.valid.augment


def seeded(i):
    torch.manual_seed(i)
    return torch.rand(3)


def test_items_seeded_by_their_number_are_taken():
    before = torch.get_rng_state()
    (kept,) = DataLoaders.from_datasets(Items(seeded), in_memory=True).train.tensors
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(kept[4], seeded(4))


class Held(Dataset):
    """Noise from a generator of its own, at the last item alone."""

    def __init__(self):
        self.transform = np.random.default_rng(0)

    def __len__(self):
        return 100

    def __getitem__(self, i):
        return self.transform.random() if i == 99 else 0.0


def seldom(i):
    return 1.0 if random.random() < 1e-9 else 0.0


@pytest.mark.parametrize(
    ("items", "place"),
    [
        (Noisy(X, Y), 0),
        (Items(seldom), 0),
        (Held(), 99),
        (Items(lambda i, n=[]: n.append(0) or len(n)), 0),
    ],
    ids=["noisy", "seldom", "at the end", "counting"],
)
def test_items_that_are_not_always_the_same_are_refused(items, place):
    with pytest.raises(
        ValueError, match=rf"train\[{place}\].*augment= instead, or use in_memory=F"
    ):
        DataLoaders.from_datasets(items, in_memory=True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("odd", [1, 70, 99])
def test_items_of_unlike_shapes_are_refused_with_the_place(odd, workers):
    items = Items(lambda i: torch.zeros(3 if i == odd else 2), 100)
    with pytest.raises(ValueError, match=rf"train\[{odd}\] has the shapes \(3,\)"):
        DataLoaders.from_datasets(items, in_memory=True, num_workers=workers)


def test_what_would_not_fit_is_refused_before_it_is_read():
    items = Items(lambda i: torch.zeros(1000), 10**10)
    with pytest.raises(ValueError, match=r"need 40000\.00 GB, and \d+\.\d\d GB are free on cpu"):
        DataLoaders.from_datasets(items, in_memory=True)


def test_reading_shows_a_bar_where_one_is_wanted(monkeypatch, capfd):
    for kind in ("terminal", "off"):
        monkeypatch.setenv("ONECYCLE_PROGRESS", kind)
        DataLoaders.from_datasets(SET, in_memory=True)
        assert ("reading train" in capfd.readouterr().err) is (kind == "terminal")


@pytest.mark.parametrize(
    ("kind", "message", "given"),
    [
        (
            TypeError,
            r"train is a DataLoader already: DataLoaders\(train, valid\)",
            (DataLoader(SET),),
        ),
        (TypeError, "valid is a stream, Stream", (SET, Stream())),
        (TypeError, "train must be a data set with __getitem__ and __len__, got int", (3,)),
        (ValueError, "train is empty", (Items(int, 0),)),
    ],
)
def test_what_is_no_data_set_is_refused(kind, message, given):
    with pytest.raises(kind, match=message):
        DataLoaders.from_datasets(*given)


@pytest.mark.parametrize(
    ("kind", "message", "options"),
    [
        (ValueError, "batch_size must be at least 1", {"batch_size": 0}),
        (ValueError, "num_workers must be at least 0", {"num_workers": -1}),
        (TypeError, "in_memory must be True or False", {"in_memory": 1}),
        (ValueError, "augment and normalize need in_memory=True", {"augment": flip()}),
        (ValueError, "augment and normalize need in_memory=True", {"normalize": (0, 1)}),
    ],
)
def test_arguments_are_checked(kind, message, options):
    with pytest.raises(kind, match=message):
        DataLoaders.from_datasets(SET, **options)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_collate_function_is_checked(in_memory):
    with pytest.raises(TypeError, match="collate_fn must be a function"):
        DataLoaders.from_datasets(SET, in_memory=in_memory, collate_fn=5)


def test_augmentation_is_checked_before_anything_is_read():
    read = []
    with pytest.raises(TypeError, match="augment"):
        DataLoaders.from_datasets(Items(read.append), in_memory=True, augment=5)
    assert not read


def test_items_that_are_no_tensors_are_refused():
    with pytest.raises(TypeError, match=r"item of train must be numbers.*\{x: \(1,\)\}"):
        DataLoaders.from_datasets(Items(lambda i: {"x": i}), in_memory=True)
