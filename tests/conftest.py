"""What every test starts from: one seed, no display, real digits."""

import os

import matplotlib as mpl
import pytest
import torch
from helpers import mlp
from matplotlib import pyplot as plt

from onecycle import DataLoaders, Learner
from onecycle.data import digits

mpl.use("Agg")
collect_ignore_glob = ["benchmarks/reliability/*"]  # commands, which import each other by name


def pytest_configure(config):
    """Of the workers that share the machine each has one thread, and so have their processes."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "off")
    torch.manual_seed(0)
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def digit_tensors():
    """1,437 real digits, flat, and their labels."""
    x, y = digits().train.tensors
    return x.flatten(1), y


@pytest.fixture
def data(digit_tensors):
    """300 digits for training in 10 batches, 100 for validation in 4, the last of them smaller."""
    x, y = digit_tensors
    valid = (x[300:400], y[300:400])
    return DataLoaders.from_tensors(x[:300], y[:300], valid=valid, batch_size=30)


@pytest.fixture
def learn(data):
    return Learner(data, mlp())
