"""examples/cifar10.py, on random images: its contenders do the same, and it says what it needs."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from onecycle.recorded import RecordedStep

PATH = Path(__file__).parent.parent / "examples" / "cifar10.py"


@pytest.fixture(scope="module")
def cifar10():
    spec = importlib.util.spec_from_file_location("cifar10_example", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def job(cifar10):
    """Four epochs of three steps, so that the bias of the whitening is frozen for the last."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(66, 3, 32, 32, generator=generator)
    y = torch.arange(66) % 10
    part = (x[:50], y[:50]), (x[50:], y[50:])
    return cifar10.Job(*part, epochs=4, batch_size=16, widths=(4, 8, 8))


@pytest.fixture(scope="module")
def by_hand(cifar10, job):
    return cifar10.run_by_hand(job)


def test_the_learner_does_what_the_loop_by_hand_does(cifar10, job, by_hand):
    losses, right = cifar10.run_learner(job)
    assert len(losses) == 12
    assert losses == pytest.approx(by_hand[0], abs=1e-4)
    assert right == by_hand[1]


def test_and_so_it_does_by_recorded_steps(cifar10, job, by_hand):
    learn = cifar10.make_learner(job, cifar10.loaders(job)[0])
    learn.training_step.recorded = RecordedStep(lambda work: work)  # no graph, the same path
    with learn.no_logging():
        learn.fit(job.epochs, schedule=cifar10.TRIANGLE)
    assert learn.recorder.losses.tolist() == pytest.approx(by_hand[0], abs=1e-4)


def test_one_epoch_more_of_a_learning_bias_would_show(cifar10, job, by_hand, monkeypatch):
    monkeypatch.setattr(cifar10, "FREEZE", 2)
    losses, _ = cifar10.run_by_hand(job)
    assert losses[:7] == by_hand[0][:7]
    assert losses[7:] != pytest.approx(by_hand[0][7:], abs=1e-4)


def test_whitened_patches_are_uncorrelated_and_of_variance_one(cifar10):
    images = functional.avg_pool2d(torch.randn(100, 3, 34, 34), 3, stride=1)
    filters = cifar10.whitening_filters(images, eps=0.0)
    assert filters.shape == (24, 3, 2, 2)
    found = torch.cov(functional.conv2d(images, filters[:12]).transpose(0, 1).flatten(1))
    assert torch.allclose(found, torch.eye(12), atol=1e-3)
    assert torch.equal(filters[12:], -filters[:12])


def test_the_network_sees_an_image_and_its_mirror_image_alike(cifar10, job):
    net = cifar10.network(job).eval()
    x = job.valid[0]
    assert torch.allclose(net(x), net(x.flip(3)), atol=1e-6)
    assert not torch.allclose(net.train()(x), net(x.flip(3)), atol=1e-3)


def test_the_schedule_is_a_triangle(cifar10):
    factors = cifar10.sample(cifar10.on_steps(cifar10.TRIANGLE, 480), 480)
    assert (factors[0], factors[-1]) == (0.2, 0.07)
    assert factors.index(1.0) == 110


def test_one_cycle_trains_anywhere(cifar10, job, capsys):
    cifar10.one_cycle(replace(job, epochs=1))
    assert capsys.readouterr().out.startswith("accuracy ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_contest_is_refused():
    command = [sys.executable, PATH, "--gpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--gpu needs cuda" in done.stderr
