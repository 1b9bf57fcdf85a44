"""Small real pieces that tests share."""

import copy
import random
import shutil
import tempfile
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from onecycle import Callback, CancelEpoch, DataLoaders, Learner
from onecycle.callback import EVENTS

sgd = partial(torch.optim.SGD, momentum=0.9)


def mlp():
    """A network with all that has a state: BatchNorm and dropout; always the same weights."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10)
    )


def plain(seed=1):
    """A linear model without randomness."""
    torch.manual_seed(seed)
    return nn.Linear(64, 10)


class Log(Callback):
    """Writes down every event; raises what `at` says at the given occurrence of an event."""

    def __init__(self, at=None):
        self.events = []
        self.at = at or {}

    def seen(self, event):
        self.events.append(event)
        for (name, count), error in self.at.items():
            if name == event and self.events.count(event) == count:
                raise error


def _hook(event):
    def hook(self, learn):
        self.seen(event)

    hook.__name__ = event
    return hook


for _event in EVENTS:
    setattr(Log, _event, _hook(_event))


class Halt(Callback):
    """Stop as Ctrl-C does, after so many steps."""

    def __init__(self, at):
        self.at = at

    def on_step_end(self, learn):
        if learn.step == self.at:
            raise KeyboardInterrupt


class Told(Callback):
    """A metric whose value is known beforehand, epoch by epoch."""

    higher_is_better = False

    def __init__(self, values):
        self.values, self.epoch = values, 0

    def on_epoch_begin(self, learn):
        self.epoch = learn.epoch

    def reset(self):
        pass

    def update(self, pred, target):
        pass

    def compute(self):
        return self.values[self.epoch]


class Cancels(Callback):
    def __init__(self, *epochs):
        self.epochs = epochs

    def on_epoch_begin(self, learn):
        if learn.epoch in self.epochs:
            raise CancelEpoch


class Kept(Callback):
    """A copy of everything the model has, after every epoch."""

    def __init__(self):
        self.states = []

    def on_epoch_end(self, learn):
        self.states.append(copy.deepcopy(learn.model.state_dict()))


def everything(learn):
    """All that a run depends on, as a comparable copy."""
    model, opt = learn.model, learn.opt
    return copy.deepcopy(
        {
            "tensors": [*model.parameters(), *model.buffers()],
            "grads": [p.grad for p in model.parameters()],
            "modes": [m.training for m in model.modules()],
            "opt": opt.state_dict(),
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state()[1],
            "python": random.getstate(),
            "loader": getattr(learn.data.train, "epoch", None),
            "counters": [learn.epoch, learn.step, learn.total_steps, learn.scores],
            "recorder": learn.recorder.state_dict(),
            "callbacks": [vars(cb) for cb in learn.callbacks],
        }
    )


def same(a, b):
    """Whether two nested values are equal, tensors bit for bit and nan equal to nan."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and _equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def _equal(a, b):
    return a.shape == b.shape and torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7))


def weights(learn):
    """Parameters, buffers and optimizer state."""
    return copy.deepcopy([learn.model.state_dict(), learn.opt.state_dict()])


def split_in_two(model):
    return [list(model[0].parameters()) + list(model[1].parameters()), list(model[4].parameters())]


class Clock:
    """Goes on by so many seconds with every step of training."""

    def __init__(self, learn, seconds):
        self.monotonic = lambda: seconds * learn.step


OPTIMIZERS = {"sgd": sgd, "adamw": torch.optim.AdamW}
LOADERS = ["in_memory", "torch", "own_generator"]


class Noisy(Dataset):
    """Augmentation that draws from every global generator."""

    def __init__(self, x, y):
        self.x, self.y, self.calls = x, y, 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.calls += 1
        noise = torch.rand(1) + np.random.rand() + random.random()
        return self.x[i] + 0.01 * noise.float(), self.y[i]


class Trouble(nn.Module):
    """Raises or spoils the output at one forward pass; has state that state_dict misses."""

    def __init__(self, at=10**9, what=None):
        super().__init__()
        self.net, self.at, self.what, self.calls = mlp(), at, what, 0
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.last = torch.zeros(1)

    def forward(self, x):
        self.calls += 1
        self.seen += 1
        self.last = self.last + 1
        if self.training and self.calls == self.at:
            if isinstance(self.what, BaseException):
                raise self.what
            return self.net(x) * self.what
        return self.net(x)


def make(digit_tensors, opt="adamw", loader="torch", model=None, **options):
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    x, y = digit_tensors
    valid = (x[300:400], y[300:400])
    data = DataLoaders.from_tensors(x[:300], y[:300], valid=valid, batch_size=30)
    if loader != "in_memory":
        generator = torch.Generator().manual_seed(5) if loader == "own_generator" else None
        train = DataLoader(Noisy(x[:300], y[:300]), 30, shuffle=True, generator=generator)
        data = DataLoaders(train, [(x[300:400], y[300:400])])
    return Learner(data, model or Trouble(), opt_func=OPTIMIZERS[opt], **options)


def stepped(learn, name="lr"):
    """A list that grows by what every group has when the optimizer steps."""
    seen = []
    learn.opt.register_step_pre_hook(
        lambda opt, *_: seen.append([group[name] for group in opt.param_groups])
    )
    return seen


def trained(digit_tensors):
    """An MLP after twenty epochs."""
    x, y = digit_tensors
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    learn = Learner(DataLoaders.from_tensors(x, y, valid=(x[:300], y[:300])), model)
    learn.fit_one_cycle(20, 5e-3)
    return learn


@cache
def _mlflow_store():
    """A store without runs: to make one takes seconds."""
    import mlflow

    folder = Path(tempfile.mkdtemp())
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.search_experiments()
    return folder / "mlflow.db"


def mlflow_in(folder):
    """Have MLflow write to a store in `folder`."""
    import mlflow

    if not (folder / "mlflow.db").exists():
        shutil.copy(_mlflow_store(), folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    if mlflow.get_experiment_by_name("digits") is None:
        mlflow.create_experiment("digits", (folder / "artifacts").as_uri())
    mlflow.set_experiment("digits")
