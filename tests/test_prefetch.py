"""Moving batches on a stream of their own: order and place, with torch's stand-in streams."""

from functools import partial

import pytest
import torch
from helpers import Noisy, mlp, same, weights
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader

from onecycle import Callback, DataLoaders, Learner
from onecycle.batch import to_device
from onecycle.data.prefetch import SideStream, mover

CPU = torch.device("cpu")


def side():
    return SideStream(CPU, pin=False)


def test_on_the_cpu_nothing_is_streamed():
    move = mover(CPU)
    assert isinstance(move, partial)
    assert move.func is to_device


def test_all_of_a_batch_is_moved():
    x, packed, names = torch.ones(2), pack_sequence([torch.ones(2)]), ["a", "b"]
    moved = side()({"pair": (x, [x, None]), "packed": packed, "names": names})
    assert same(moved["pair"], (x, [x, None]))
    assert moved["packed"].data.tolist() == [1.0, 1.0]
    assert moved["names"] == names


def test_the_training_waits_for_the_copy(monkeypatch):
    events = []
    move = side()
    before = torch.cpu.stream

    def stream(of):
        events.append("copy" if of is move._side else "other")
        return before(of)

    monkeypatch.setattr(torch.cpu, "stream", stream)
    monkeypatch.setattr(
        torch.cpu.Stream, "wait_stream", lambda self, other: events.append(("wait", other))
    )
    move((torch.ones(2), torch.ones(3)))
    assert events == ["copy", "copy", ("wait", move._side)]


class Place(Callback):
    """How many batches the data says were taken, beside how many were trained on."""

    def __init__(self):
        self.seen = []

    def on_batch_end(self, learn):
        taken = learn.loop.reader.state_dict()["taken"]
        self.seen.append((taken, learn.batch_index + 1))


@pytest.mark.parametrize("kind", ["in_memory", "workers"])
def test_nothing_is_read_ahead_and_no_bit_changes(digit_tensors, monkeypatch, kind):
    x, y = (part[:200] for part in digit_tensors)
    runs = []
    for move in (lambda device: side(), mover):
        monkeypatch.setattr("onecycle.loop.mover", move)
        torch.manual_seed(3)
        data = DataLoaders.from_tensors(x, y)
        if kind == "workers":
            data = DataLoaders(DataLoader(Noisy(x, y), 64, shuffle=True, num_workers=1))
        learn, place = Learner(data, mlp(), device="cpu"), Place()
        learn.fit(2, callbacks=[place])
        assert place.seen == [(n, n) for n in (1, 2, 3, 4)] * 2
        runs.append(weights(learn))
    assert same(*runs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_are_those_of_the_host():
    device = torch.device("cuda")
    move = mover(device)
    batches = [(torch.full((256, 256), float(i)), torch.tensor([i])) for i in range(50)]
    total = torch.zeros((), device=device)
    for x, y in map(move, batches):
        total += (x @ x).sum() * 0 + x.sum() + y.sum()
    assert total.item() == sum(x.sum().item() + y.item() for x, y in batches)
