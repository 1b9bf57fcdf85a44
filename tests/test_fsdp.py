"""Models of fully_shard: what two processes make of them is what one makes of the whole model."""

import importlib
import pickle
import shutil
from functools import partial

import pytest
import torch
from helpers import same, sgd
from torch import nn
from torch.distributed.fsdp import fully_shard

from onecycle import (
    EMA,
    Callback,
    CancelBatch,
    CancelTrain,
    Checkpoint,
    DataLoaders,
    Learner,
    SaveBest,
    accuracy,
    launch,
    shard_files,
    shards,
)
from onecycle.data import digits

pytestmark = [
    pytest.mark.skipif(
        not hasattr(torch.cpu.Stream, "record_event"), reason="this torch shards on cuda only"
    ),
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.device_count() < 4,
        reason="one GPU for each process",
    ),
]


def shard(model):
    """Each layer by itself, and what is left by the whole; not all are divisible."""
    for part in model:
        if isinstance(part, nn.Linear):
            fully_shard(part)
    fully_shard(model)


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(64, 16), nn.BatchNorm1d(16, affine=False), nn.ReLU(), nn.Linear(16, 10)
    )


def smooth():
    """Without batch norm, whose statistics are those of a part of the batch."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 15), nn.LayerNorm(15), nn.ReLU(), nn.Linear(15, 10))


def make(processes, model=smooth, **options):
    """80 digits in steps of 16, and 37 to validate, whose last batch has 5 for all processes."""
    x, y = digits().train.tensors
    x = x.flatten(1)
    size = 16 // processes
    data = DataLoaders.from_tensors(x[:90], y[:90], valid=(x[100:137], y[100:137]), batch_size=size)
    learn = Learner(data, model(), **{"metrics": [accuracy], "shard": shard, **options})
    learn.hints = False
    return learn


def whole(learn):
    return shards.whole([learn.model.state_dict(), learn.opt.state_dict()])


class On(Callback):
    """Raises at the given batch, counted over all epochs, in one process or in all."""

    def __init__(self, event, batch, error, rank=None):
        self.batch, self.error, self.rank, self.seen = batch, error, rank, -1
        setattr(self, event, self.hook)

    def hook(self, learn):
        self.seen += 1
        if self.seen == self.batch and self.rank in (None, learn.world.rank):
            raise self.error


def fitted(processes, folder, **options):
    """Losses, norms of gradients and history of a fit."""
    learn = make(processes, **options)
    learn.fit_one_cycle(2, 0.02, callbacks=[EMA()])
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in learn.recorder.history]
    return learn.recorder.losses.tolist(), learn.recorder.grad_norms.tolist(), rows


def evaluated(processes, folder):
    learn = make(processes, opt_func=sgd)
    learn.fit(1, 0.1)
    x, _ = learn.data.valid.tensors
    gathered = all(map(shards.is_shard, learn.model.parameters())) or processes == 1
    return [learn.validate()["valid_loss"], *learn.get_preds(), learn.predict(x[:3]), gathered]


def searched(processes, folder):
    """What lr_find suggests, and whether it has left anything behind."""
    learn = make(processes, network)
    learn.fit(1, 0.01)

    def state():
        of_opt = [list(own.values()) for own in learn.opt.state.values()]
        held = [[*learn.model.parameters(), *learn.model.buffers()], of_opt]
        local = shards.mapped(held, lambda _, t: shards.local(t).clone(), torch.is_tensor)
        return [local, torch.get_rng_state(), learn.step, learn.recorder.state_dict()]

    before = state()
    found = learn.lr_find(num_it=20, stop_div=True, show_plot=False)
    return found.losses, all(learn.world.gather(same(before, state())))


def stopped(processes, folder, name):
    """A fit of two epochs that ends in the middle of gathering gradients, and one that does not."""
    options = {"accumulate": 4, "clip": 1.0}
    learn = make(processes, **options)
    saving = Checkpoint(folder / name, every_minutes=1e-9, keep=3)
    callbacks = [EMA(), saving, On("on_batch_begin", 8, KeyboardInterrupt())]
    with pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(2, 0.02, callbacks=callbacks)
    learn = make(processes, **options)
    learn.fit_one_cycle(2, 0.02, callbacks=[ema := EMA()])
    return _end(learn, ema)


def resumed(processes, folder, name):
    learn = make(processes, accumulate=4, clip=1.0)
    never = On("on_batch_begin", -2, KeyboardInterrupt())
    learn.resume(folder / name, callbacks=[ema := EMA(), never])
    return _end(learn, ema)


def _end(learn, ema):
    state = [learn.model.state_dict(), learn.opt.state_dict()["state"], ema.state_dict()]
    return [learn.recorder.losses.tolist(), shards.whole(state)]


def files(processes, folder):
    """The weights of a learner, and of others that have read them in a file."""
    learn, other = make(processes, network), make(processes, network)
    learn.fit(2, 0.01, callbacks=[SaveBest(folder / f"best{processes}.pt", load=True)])
    learn.save(folder / f"saved{processes}.pt")
    other.load(folder / f"saved{processes}.pt")
    return whole(learn), whole(other)


def loaded(processes, folder, name):
    return whole(make(processes, network).load(folder / name))


def cancelled(processes, folder):
    """Losses where one process alone leaves out a batch or stops, by the event that it does it."""
    signals = {
        "on_batch_begin": CancelBatch(),
        "on_loss_begin": CancelBatch(),
        "on_backward_begin": CancelTrain(),
        "on_validate_batch_end": CancelTrain(),
        "on_step_end": CancelTrain(),
    }
    losses = {}
    for event, signal in signals.items():
        learn = make(processes)
        learn.fit(2, 0.01, callbacks=[On(event, 1, signal, rank=processes - 1)])
        losses[event] = learn.recorder.losses.tolist()
    return losses


class Spoils(Callback):
    """Puts nan into what one process has, in its third batch."""

    def __init__(self, what):
        self.what = what

    def on_batch_begin(self, learn):
        if self.what == "loss" and learn.batch_index == 2 and learn.world.rank:
            learn.batch = learn.batch[0] * torch.nan, learn.batch[1]

    def on_backward_end(self, learn):
        if self.what == "gradient" and learn.batch_index == 2 and learn.world.rank:
            shards.local(next(learn.model.parameters()).grad).fill_(torch.nan)


def spoiled(processes, folder):
    """What each process says, and how many steps it had made."""
    said = []
    for what in ("loss", "gradient"):
        learn = make(processes)
        with pytest.raises(FloatingPointError) as error:
            learn.fit(1, 0.01, callbacks=[Spoils(what)])
        said.append((str(error.value).split(":")[0], learn.step))
    learn.fit(1, 0.01)  # nothing is left of the failure
    return learn.world.gather(said)


def refused(processes, folder):
    """What is said of models that cannot be trained."""
    said = []
    for apply in (lambda model: fully_shard(model[0]), print, 3):
        with pytest.raises((ValueError, TypeError)) as error:
            make(processes, shard=apply).fit(1, 0.01)
        said.append(str(error.value))
    return said


SAME = {
    "adamw": fitted,
    "clipped": partial(fitted, clip=0.5, accumulate=4),
    "sgd": partial(fitted, opt_func=sgd),
    "evaluated": evaluated,
    "cancelled": cancelled,
}
ALL = {
    **SAME,
    "searched": searched,
    "stopped": partial(stopped, name="two.pt"),
    "files": files,
    "spoiled": spoiled,
    "refused": refused,
    "plain": partial(loaded, name="plain.pt"),
}


def results(processes, folder, parts):
    return {name: part(processes, folder) for name, part in parts.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # What each process would else import for itself, and not only once.
    importlib.import_module("torch._dynamo")
    importlib.import_module("torch.distributed.checkpoint")
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def one(folder):
    learn = make(1, network)
    learn.fit(1, 0.01)
    learn.save(folder / "plain.pt")
    parts = {**SAME, "alone": partial(stopped, name="alone.pt")}
    return {**results(1, folder, parts), "plain": whole(learn)}


@pytest.fixture(scope="module")
def two(folder, one):
    return launch(results, 2, 2, folder, ALL)


@pytest.fixture(scope="module")
def four(folder, two):
    parts = {"stopped": partial(resumed, name=_copied(folder, "by_four"))}
    return launch(results, 4, 4, folder, parts)


@pytest.fixture(scope="module")
def again(folder, two):
    parts = {
        "stopped": partial(resumed, name=_copied(folder, "by_two")),
        "alone": partial(resumed, name="alone.pt"),
    }
    return launch(results, 2, 2, folder, parts)


def _copied(folder, to):
    """Copy the checkpoints of two processes, which a resumed run replaces; return their name."""
    shutil.copytree(folder / "two.pt.shards", folder / to / "two.pt.shards")
    (folder / to / "two.pt.shards" / "left by a crash").mkdir()
    for name in ("two.pt", "two.pt.1"):
        shutil.copy(folder / name, folder / to / name)
    return f"{to}/two.pt"


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", SAME)
def test_two_processes_are_as_one(one, two, name):
    close(two[name], one[name])


def test_the_finder_leaves_no_trace(two):
    losses, untouched = two["searched"]
    assert len(losses) > 5
    assert untouched


def test_a_resumed_run_ends_bit_for_bit_as_the_one_never_stopped(two, again):
    assert same(two["stopped"], again["stopped"])


def test_one_process_resumes_the_run_of_two(folder, two):
    close(resumed(1, folder, _copied(folder, "by_one")), two["stopped"])


def test_two_processes_resume_the_run_of_one(one, again):
    close(again["alone"], one["alone"])


def test_four_processes_resume_the_run_of_two(two, four):
    close(four["stopped"], two["stopped"])


def test_files_hold_the_whole_and_fit_a_plain_model(folder, one, two):
    saved, loaded_there = two["files"]
    assert same(saved, loaded_there)
    assert same(saved, loaded(1, folder, "saved2.pt"))
    assert same(one["plain"], two["plain"])


def test_one_process_cancels_for_all(two):
    counts = {event: len(losses) for event, losses in two["cancelled"].items()}
    assert counts == {
        "on_batch_begin": 11,
        "on_loss_begin": 11,
        "on_backward_begin": 1,
        "on_validate_batch_end": 6,
        "on_step_end": 2,
    }


def test_nan_on_one_shard_ends_all(two):
    loss = ("the loss is nan on rank 1 at step 3, epoch 1, batch 3, learning rate 0.01", 2)
    gradient = ("a gradient is not finite at step 3, epoch 1, batch 3, learning rate 0.01", 2)
    assert two["spoiled"] == [[loss, gradient]] * 2


def test_models_that_are_not_wholly_sharded_are_refused(two):
    partly, nothing, number = two["refused"]
    assert "'1.weight' is not sharded" in partly
    assert "it did not" in nothing
    assert number.startswith("shard must be a function")


def test_a_damaged_shard_is_seen_and_the_one_before_is_taken(folder, two):
    path = folder / _copied(folder, "damaged")
    newest = torch.load(path, weights_only=True)["shards"]["folder"]
    damaged = path.parent / newest / "__1_0.distcp"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.warns(UserWarning, match="missing or damaged"):
        ended = resumed(1, folder, "damaged/two.pt")
    close(ended, two["stopped"])


@pytest.mark.parametrize("place", [".", "by_two"])
def test_shards_that_no_checkpoint_names_are_removed(folder, again, place):
    files = [folder / place / f"two.pt{n}" for n in ("", ".1", ".2")]
    named = {torch.load(file, weights_only=True)["shards"]["folder"] for file in files}
    there = {f"two.pt.shards/{made.name}" for made in (folder / place / "two.pt.shards").iterdir()}
    assert named == there


def test_metadata_runs_no_code(folder, two):
    saved = torch.load(folder / "two.pt", weights_only=True)
    metadata = folder / "evil" / saved["shards"]["folder"] / ".metadata"
    metadata.parent.mkdir(parents=True)
    metadata.write_bytes(pickle.dumps(shutil.rmtree))
    with pytest.raises(ValueError, match=r"must not name shutil\.rmtree"):
        shard_files.filled(folder / "evil" / "two.pt", saved, nn.Linear(1, 1))


def test_one_process_does_not_shard():
    assert not make(1).network.sharded
