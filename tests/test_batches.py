"""Every form of batch and loader trains: tuples, mappings, streams, samplers, workers."""

from collections import namedtuple

import pytest
import torch
from helpers import mlp, plain
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from onecycle import (
    Callback,
    DataLoaders,
    Learner,
    accuracy,
)

Pair = namedtuple("Pair", "x y")


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = plain()

    def forward(self, x, extra):
        return self.net(x) + extra


FORMATS = {
    "tuple": (lambda x, y: (x, y), plain),
    "list": (lambda x, y: [x, y], plain),
    "named tuple": (Pair, plain),
    "three": (lambda x, y: (x, x.mean(1, keepdim=True), y), TwoInputs),
    "nested": (lambda x, y: ((x, x.mean(1, keepdim=True)), y), TwoInputs),
    "nested mapping": (lambda x, y: ({"x": x, "extra": 0.0}, y), TwoInputs),
    "mapping": (lambda x, y: {"x": x, "extra": torch.zeros(1), "label": y}, TwoInputs),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_form_of_batch_trains_and_predicts(data, name):
    form, model = FORMATS[name]
    loaders = [[form(*batch) for batch in part] for part in (data.train, data.valid)]
    learn = Learner(tuple(loaders), model(), metrics=[accuracy])
    learn.lr_find(num_it=10)
    learn.fit_one_cycle(3, 0.05)
    preds, targets = learn.get_preds()
    assert preds.shape == (100, 10)
    assert targets.tolist() == data.valid.tensors[1].tolist()
    assert learn.validate()["accuracy"] > 0.6


def test_a_model_may_return_a_tuple_or_a_mapping(data):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = plain()

        def forward(self, x):
            return {"scores": self.net(x), "extra": (x.mean(1),)}

    loss = nn.CrossEntropyLoss()
    learn = Learner(data, Two(), loss_func=lambda pred, y: loss(pred["scores"], y))
    learn.fit(1)
    assert learn.get_preds()[0]["extra"][0].shape == (100,)


class Stream(IterableDataset):
    """Batches without a length."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class SizedStream(Stream):
    def __len__(self):
        return len(self.batches)


def test_an_iterable_of_known_length(data):
    learn = Learner((DataLoader(SizedStream(list(data.train)), batch_size=None), None), plain())
    learn.fit_one_cycle(2, 1e-2)
    assert learn.step == learn.total_steps == 20


@pytest.mark.parametrize(("steps", "first_of_second"), [(4, 4), (10, 0), (15, 5)])
def test_an_iterable_of_unknown_length_goes_on_where_it_stopped(data, steps, first_of_second):
    batches, seen = list(data.train), []

    class Watch(Callback):
        def on_batch_begin(self, learn):
            seen.append(learn.batch[1].tolist())

    loaders = DataLoaders(Stream(batches), data.valid, steps_per_epoch=steps)
    learn = Learner(loaders, plain(), callbacks=[Watch])
    learn.lr_find(num_it=25)
    learn.fit_one_cycle(2, 1e-2)
    assert len(seen) == learn.total_steps == 2 * steps
    assert seen[steps] == batches[first_of_second][1].tolist()


def test_an_unknown_length_is_asked_for_by_name(data):
    with pytest.raises(ValueError, match="steps_per_epoch"):
        Learner((Stream(list(data.train)), None), plain())


def test_the_order_of_batches_is_a_function_of_seed_and_epoch(data):
    seen = []

    class Watch(Callback):
        def on_batch_begin(self, learn):
            seen.append(learn.batch[1].tolist())

    learn = Learner(data, plain(), callbacks=[Watch])
    learn.fit(1)
    learn.fit(1)
    again = Learner(data, plain(), callbacks=[Watch])
    again.fit(2)
    assert seen[:20] == seen[20:]
    assert seen[:10] != seen[10:20]


def test_training_data_may_be_exchanged_between_fits(data):
    learn = Learner(data, plain())
    learn.data.train = list(data.train)[:3]
    learn.fit_one_cycle(2, 0.02)
    assert learn.step == learn.total_steps == 6


def test_a_length_that_is_wrong_is_told(data):
    class Says(list):
        def __len__(self):
            return 12

    learn = Learner((Says(data.train), None), plain())
    with pytest.warns(UserWarning, match="yielded 10 batches, its length says 12"):
        learn.fit(1)


def test_a_stream_goes_on_from_fit_to_fit_and_lr_find_leaves_its_place(data):
    batches, seen = list(data.train), []

    class Watch(Callback):
        def on_batch_begin(self, learn):
            seen.append(learn.batch[1].tolist())

    learn = Learner(DataLoaders(Stream(batches), steps_per_epoch=4), plain(), callbacks=[Watch])
    for _ in range(3):
        learn.fit(1)
        learn.lr_find(num_it=11)
    assert seen == [batches[i % 10][1].tolist() for i in range(12)]


def test_every_pass_through_a_stream_has_its_order(data):
    seen = []

    class Watch(Callback):
        def on_batch_begin(self, learn):
            seen.append(learn.batch[1].tolist())

    stream = DataLoaders(data.train, steps_per_epoch=4)
    learn = Learner(stream, plain(), callbacks=[Watch])
    for _ in range(5):
        learn.fit(1)
    expected = []
    for epoch in range(2):
        data.train.set_epoch(epoch)
        expected += [batch[1].tolist() for batch in data.train]
    assert seen == expected


def test_samplers_are_told_the_epoch(digit_tensors):
    x, y = digit_tensors
    told = []

    class Sampler(torch.utils.data.SequentialSampler):
        def set_epoch(self, epoch):
            told.append(epoch)

    dataset = TensorDataset(x[:60], y[:60])
    learn = Learner((DataLoader(dataset, 30, sampler=Sampler(dataset)), None), plain())
    learn.fit(2)
    learn.fit(1)
    assert told == [0, 1, 2]


def test_validation_data_need_no_length(data):
    learn = Learner((data.train, DataLoader(Stream(list(data.valid)), batch_size=None)), plain())
    learn.fit(1)
    assert learn.validate()["valid_loss"] == learn.scores["valid_loss"]


def test_a_sampler_in_a_batch_sampler_is_told_the_epoch(digit_tensors):
    x, y = digit_tensors
    dataset = TensorDataset(x[:60], y[:60])
    sampler = torch.utils.data.DistributedSampler(dataset, num_replicas=1, rank=0)
    batches = torch.utils.data.BatchSampler(sampler, 30, drop_last=False)
    learn = Learner((DataLoader(dataset, batch_sampler=batches), None), plain())
    learn.fit(3)
    assert sampler.epoch == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_torch_loader_trains(digit_tensors, workers):
    x, y = digit_tensors
    loader = DataLoader(TensorDataset(x[:90], y[:90]), 30, shuffle=True, num_workers=workers)
    learn = Learner((loader, loader), mlp(), metrics=[accuracy])
    learn.fit_one_cycle(2, 1e-2)
    assert len(learn.recorder.losses) == 6
