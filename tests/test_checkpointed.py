"""models.checkpointed: less memory, and not another bit."""

import copy
import operator

import pytest
import torch
from helpers import same, weights
from torch import nn

from onecycle import Learner
from onecycle.models import checkpointed

PICKS = {
    "names": ["0", "1"],
    "class": nn.Sequential,
    "function": lambda module: isinstance(module, Counting),
}


class Counting(nn.Module):
    """Puts out more with every batch, and has a buffer that stays."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.ones(()))
        self.register_buffer("mask", torch.ones(16))
        self.register_buffer("last", torch.ones(16), persistent=False)

    def forward(self, x):
        if self.training:
            self.seen += 1
            self.last = self.last + x.detach().mean(0)
        return x * self.mask * self.seen.sqrt() + self.last


def net():
    torch.manual_seed(1)

    def block(size):
        return nn.Sequential(
            nn.Linear(size, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), Counting()
        )

    return nn.Sequential(block(64), block(16), nn.Linear(16, 10))


def trained(data, model, **options):
    learn = Learner(data, model, device="cpu", **options)
    torch.manual_seed(2)
    learn.fit_one_cycle(2, 0.01)
    return weights(learn), learn.recorder.history[-1]["valid_loss"], torch.get_rng_state()


class Held:
    """How many numbers autograd keeps for the backward pass."""

    def __init__(self, model):
        self.numbers = 0
        with torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor):
            model(torch.ones(8, 64))

    def keep(self, tensor):
        self.numbers += tensor.numel() * (not isinstance(tensor, nn.Parameter))
        return tensor


@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}, {"accumulate": 2}])
@pytest.mark.parametrize("pick", PICKS)
def test_training_is_the_same_bit_for_bit(data, pick, options):
    model = checkpointed(net(), PICKS[pick])
    buffers = list(model.buffers())
    assert list(model.state_dict()) == list(net().state_dict())
    assert same(trained(data, model, **options), trained(data, net(), **options))
    assert all(map(operator.is_, model.buffers(), buffers[:2]))


def test_less_is_kept(data):
    model = net()
    whole = Held(model).numbers
    part = Held(checkpointed(model, ["0", "1"])).numbers
    assert part < 0.5 * whole
    assert Held(checkpointed(model, [])).numbers == whole
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_later_call_takes_the_place_of_an_earlier_one():
    model = checkpointed(checkpointed(net(), ["0"]), "1")
    assert ["forward" in vars(block) for block in model[:2]] == [False, True]


def test_a_copy_is_one_of_itself(data):
    model = checkpointed(net(), nn.Sequential)
    twin = copy.deepcopy(model)
    before = weights(Learner(data, model))
    trained(data, twin)
    assert same(weights(Learner(data, model)), before)


def test_a_backward_pass_can_be_made_twice():
    gradients = []
    for model in (net(), checkpointed(net(), ["0", "1"])):
        torch.manual_seed(0)
        loss = model(torch.ones(8, 64)).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert same(*gradients)


def test_lr_find_has_the_same_curve(data):
    curves = []
    for model in (net(), checkpointed(net(), ["0", "1"])):
        torch.manual_seed(0)
        curves.append(Learner(data, model).lr_find(num_it=10, show_plot=False).losses)
    assert same(*curves)


@pytest.mark.parametrize(
    ("modules", "error"), [("2.0", ValueError), (nn.Conv2d, ValueError), (3, TypeError)]
)
def test_modules_that_are_not_there_are_told(modules, error):
    with pytest.raises(error, match="modules"):
        checkpointed(net(), modules)
