"""Parameter groups, and reading and writing of hyper-parameters."""

import copy
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch
from helpers import mlp, sgd
from torch import nn

from onecycle import ParamScheduler, optimizers
from onecycle.schedules import linear


def test_biases_and_norms_have_no_decay():
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.Linear(3, 1))
    opt = optimizers.build(model, torch.optim.AdamW, wd=0.1)
    decay = {id(p): group["weight_decay"] for group in opt.param_groups for p in group["params"]}
    wanted = {name: 0.1 if name in ("0.weight", "3.weight") else 0.0 for name in model.state_dict()}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == wanted


class Mine(torch.optim.AdamW):
    def __init__(self, params, **options):
        super().__init__(params, **options)


@pytest.mark.parametrize(
    ("opt_func", "wd", "expected"),
    [
        (torch.optim.AdamW, 0.3, 0.3),
        (torch.optim.AdamW, None, 0.01),
        (sgd, 0.3, 0.3),
        (sgd, None, 0.0),
        (lambda groups: sgd(groups, weight_decay=0.7), 0.3, 0.7),
        (partial(sgd, weight_decay=0.0), 0.3, 0.0),
        (partial(torch.optim.AdamW, weight_decay=0.01), 0.3, 0.01),
        (Mine, 0.3, 0.3),
    ],
)
def test_whose_weight_decay_holds_and_never_for_biases(opt_func, wd, expected):
    opt = optimizers.build(mlp(), opt_func, wd)
    assert [group["weight_decay"] for group in opt.param_groups] == [expected, 0.0]


def test_rates_that_are_tensors_are_each_groups_own():
    opt = optimizers.build(mlp(), partial(torch.optim.AdamW, lr=torch.tensor(0.1)))
    optimizers.write(opt, "lr", [0.5])
    first, second = (group["lr"] for group in opt.param_groups)
    assert first is not second


def test_keys_that_are_new_are_taken_out_again():
    opt = optimizers.build(mlp(), sgd)
    with optimizers.preserved(opt):
        optimizers.write(opt, "color", [1.0])
    assert "color" not in opt.param_groups[0]


@pytest.mark.parametrize(
    ("lr", "n", "expected"),
    [
        (0.1, 3, [0.1] * 3),
        (slice(1e-5, 1e-3), 3, [1e-5, 1e-4, 1e-3]),
        (slice(1e-3), 3, [1e-4, 1e-4, 1e-3]),
        (slice(1e-3), 1, [1e-3]),
        (slice(1e-5, 1e-3), 1, [1e-3]),
        ([1.0, 2.0], 2, [1.0, 2.0]),
        (torch.tensor(0.5), 1, [0.5]),
    ],
)
def test_spread(lr, n, expected):
    assert optimizers.spread("lr", lr, n) == pytest.approx(expected, rel=1e-12)


def test_only_the_first_beta_is_momentum():
    opt = torch.optim.AdamW(mlp().parameters(), betas=(0.9, 0.77))
    optimizers.write(opt, "mom", [0.5])
    assert opt.param_groups[0]["betas"] == (0.5, 0.77)
    opt.param_groups[0]["betas"] = (0.9, 0.8, 0.7)
    optimizers.write(opt, "mom", [0.5])
    assert opt.param_groups[0]["betas"] == (0.5, 0.8, 0.7)
    assert optimizers.read(opt, "mom") == 0.5


def test_a_rate_that_is_a_tensor_is_written_in_place():
    opt = torch.optim.AdamW(mlp().parameters(), lr=torch.tensor(0.1), capturable=True)
    rate = opt.param_groups[0]["lr"]
    with optimizers.preserved(opt):
        optimizers.write(opt, "lr", [0.5])
        assert rate.item() == 0.5
    assert rate is opt.param_groups[0]["lr"]
    assert rate.item() == pytest.approx(0.1)


def test_hyper_parameters_come_back_after_an_error():
    opt = optimizers.build(mlp(), sgd)
    before = copy.deepcopy(opt.state_dict())
    with suppress(ZeroDivisionError), optimizers.preserved(opt):
        optimizers.write(opt, "lr", [9.0])
        optimizers.write(opt, "mom", [0.1])
        raise ZeroDivisionError
    assert opt.state_dict() == before


def test_groups_survive_a_state_dict():
    def two(model):
        return [list(model[0].parameters()), [*model[1].parameters(), *model[4].parameters()]]

    model = mlp()
    opt = optimizers.build(model, sgd, splitter=two)
    other = optimizers.build(model, sgd)
    assert (optimizers.n_groups(opt), optimizers.n_groups(other)) == (2, 1)
    optimizers.write(opt, "lr", [1.0, 2.0])
    opt.load_state_dict(opt.state_dict())
    assert optimizers.current(opt, "lr") == [1.0, 2.0]


@pytest.mark.parametrize("rates", [np.array([0.1, 0.2]), torch.tensor([0.1, 0.2]), (0.1, 0.2)])
def test_rates_may_be_an_array(rates):
    assert optimizers.spread("lr", rates, 2) == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize("name", ["betas", "layer_group", "amsgrad", "learning_rate"])
def test_what_is_no_number_cannot_be_scheduled(learn, name):
    with pytest.raises(ValueError, match=f"schedules.'{name}'.*it has lr, mom, wd, eps"):
        learn.fit(1, callbacks=ParamScheduler({name: linear(1.0, 0.0)}))


@pytest.mark.parametrize("kind", optimizers.FUSED)
def test_what_torch_cannot_fuse_is_not(kind):
    model = nn.Linear(2, 1, dtype=torch.complex64)
    opt = optimizers.build(model, kind)
    assert not any(group["fused"] for group in opt.param_groups)
    model(torch.ones(3, 2, dtype=torch.complex64)).abs().sum().backward()
    opt.step()
