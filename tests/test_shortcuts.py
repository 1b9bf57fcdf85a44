"""The shortcuts: torch's numbers to the last bit, its state, and its own way when in doubt."""

import copy
import logging
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from helpers import mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from onecycle import Callback, Learner, shortcuts
from onecycle.shortcuts import Backward, Update, known

X, Y = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 10
KINDS = {
    "adamw": torch.optim.AdamW,
    "adamw amsgrad": partial(torch.optim.AdamW, amsgrad=True),
    "adam": torch.optim.Adam,
    "adam decay": partial(torch.optim.Adam, weight_decay=0.1, maximize=True),
    "sgd": torch.optim.SGD,
    "sgd momentum": partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1),
    "sgd nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "sgd dampening": partial(torch.optim.SGD, momentum=0.9, dampening=0.5),
}


def pair(kind, **options):
    """Two equal models with optimizers of two groups."""
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    models = one, copy.deepcopy(one)
    opts = []
    for model in models:
        wide = [p for p in model.parameters() if p.ndim > 1]
        flat = [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": wide}, {"params": flat, "weight_decay": 0.0, "lr": 0.01}]
        opts.append(kind(groups, lr=0.1, fused=True, **options))
    return *models, *opts


def gradients(model):
    cross_entropy(model(X), Y).backward()


def step(update):
    parameters = update.parameters()
    update(parameters, [p.grad for p in parameters if p.grad is not None])


def same_state(one, other):
    """Tell whether two optimizers are equal in everything that a file would hold."""
    a, b = one.state_dict(), other.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for i, own in a["state"].items():
        assert own.keys() == b["state"][i].keys()
        for name, value in own.items():
            assert torch.equal(value, b["state"][i][name]), (i, name)
            assert value.dtype == b["state"][i][name].dtype


class Counted:
    """The optimizers whose own step was called, in the block; it is in place before an Update."""

    def __init__(self, kind):
        self.kind, self.usual, self.calls = kind, kind.step, []

    def __enter__(self):
        def step(opt, *args):
            self.calls.append(opt)
            return self.usual(opt, *args)

        step.hooked = True  # or torch would wrap it
        self.kind.step = step
        return self

    def __exit__(self, *error):
        self.kind.step = self.usual

    def take(self, opt):
        """How often that of `opt` was called since it was last asked."""
        calls, self.calls = self.calls, []
        return sum(one is opt for one in calls)


def run(kind, change=lambda i, model, opt: None, steps=6):
    """Step one model by the shortcut and one by torch; return at which steps torch's was called."""
    short, plain, opt, reference = pair(KINDS[kind])
    calls = []
    with Counted(type(opt)) as counted:
        update = Update(opt)
        for i in range(steps):
            change(i, short, opt)
            change(i, plain, reference)
            gradients(short)
            gradients(plain)
            step(update)
            calls += [i] * counted.take(opt)
            reference.step()
            update.clear()
            reference.zero_grad()
            assert all(p.grad is None for p in short.parameters())
            for p, q in zip(short.parameters(), plain.parameters(), strict=True):
                assert torch.equal(p, q)
            same_state(opt, reference)
    return calls


def counted(opt):
    """The steps that the first state has counted; None where there is no counter."""
    state = next(iter(opt.state.values()), {})
    return state["step"].item() if "step" in state else None


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_torch(kind):
    assert run(kind) == [0]


@pytest.mark.parametrize("kind", KINDS)
def test_rate_and_momentum_may_move_at_every_step(kind):
    def move(i, _, opt):
        for group in opt.param_groups:
            group["lr"] = 0.1 / (i + 1)
            if "betas" in group:
                group["betas"] = (0.9 - i / 100, 0.99)
            elif group["momentum"]:
                group["momentum"] = 0.9 - i / 100

    assert run(kind, move) == [0]


def freeze(i, model, opt):
    if i in (2, 4):
        model[0].weight.requires_grad_(i == 4)


def swap_state(i, model, opt):
    if i == 3:
        opt.load_state_dict(copy.deepcopy(opt.state_dict()))


def forget_state(i, model, opt):
    if i == 3:
        opt.state.clear()


def new_state(i, model, opt):
    if i == 3:
        for p, own in opt.state.items():
            opt.state[p] = dict(own)


def new_group(i, model, opt):
    if i == 3:
        group = opt.param_groups.pop()
        opt.add_param_group(dict(group))


def move_parameter(i, model, opt):
    if i == 3:
        a, b = opt.param_groups
        b["params"].append(a["params"].pop(0))
        a["params"].append(b["params"].pop(0))


def tensor_rate(i, model, opt):
    if i == 3:
        for group in opt.param_groups:
            group["lr"] = torch.tensor(0.1)


def unfused(i, model, opt):
    if i == 3:
        for group in opt.param_groups:
            group["fused"] = False


def empty_state(i, model, opt):
    if i == 3:
        for own in opt.state.values():
            own.clear()


def other_gradient(i, model, opt):
    """One parameter has no gradient in the even steps, and another none in the odd ones."""
    for k, weight in enumerate((model[0].weight, model[3].weight)):
        weight.requires_grad_(i % 2 == k)


CHANGES = {
    "freeze": (freeze, [0, 2, 4]),
    "swap_state": (swap_state, [0, 3]),
    "forget_state": (forget_state, [0, 3]),
    "new_state": (new_state, [0, 3]),
    "new_group": (new_group, [0, 3]),
    "move_parameter": (move_parameter, [0, 3]),
    "empty_state": (empty_state, [0, 3]),
    "other_gradient": (other_gradient, [0, 1, 2, 3, 4, 5]),
    "tensor_rate": (tensor_rate, [0, 3, 4, 5]),
    "unfused": (unfused, [0, 3, 4, 5]),
}


@pytest.mark.parametrize("kind", ["adamw", "sgd momentum"])
@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_torch_steps(change, kind):
    function, torchs = CHANGES[change]
    assert run(kind, function) == torchs


def test_a_state_of_another_tensor_is_used():
    def other(i, model, opt):
        if i == 3:
            for own in opt.state.values():
                own["exp_avg"] = torch.zeros_like(own["exp_avg"])
                own["step"] = own["step"] + 0.0

    assert run("adamw", other) == [0]


def test_counters_moved_to_another_place_in_memory_count():
    def move(i, model, opt):
        if i == 3:
            for own in opt.state.values():
                own["step"].data = own["step"].clone() + 5

    assert run("adamw", move) == [0]


def test_momenta_that_are_none_begin_anew():
    def none(i, model, opt):
        if i == 3:
            for own in opt.state.values():
                own["momentum_buffer"] = None

    assert run("sgd momentum", none) == [0, 3]


@pytest.mark.skipif(
    "decoupled_weight_decay" not in torch.optim.AdamW([torch.ones(1)]).defaults,
    reason="a setting of newer versions of torch",
)
def test_decay_that_is_coupled_all_at_once():
    def couple(i, model, opt):
        for group in opt.param_groups:
            group["decoupled_weight_decay"] = i < 3

    assert run("adamw", couple) == [0]


def test_groups_with_and_without_momentum_are_left_to_torch():
    model = mlp()
    groups = [{"params": model[0].parameters()}, {"params": model[4].parameters(), "momentum": 0.0}]
    opt = torch.optim.SGD(groups, lr=0.1, momentum=0.9, fused=True)
    with Counted(torch.optim.SGD) as counted:
        update = Update(opt)
        for _ in range(3):
            gradients(model)
            step(update)
        assert counted.take(opt) == 3


def test_numbers_of_several_types_in_a_group_are_left_to_torch():
    parameters = [nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.float32, torch.float64)]
    opt = torch.optim.AdamW(parameters, lr=0.1, fused=True)
    with Counted(torch.optim.AdamW) as counted:
        update = Update(opt)
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            step(update)
        assert counted.take(opt) == 3


def test_steps_without_any_gradient_change_nothing_for_those_after():
    short, plain, opt, reference = pair(torch.optim.AdamW)
    update = Update(opt)
    for i in range(6):
        if i not in (2, 3):
            gradients(plain)
            reference.step()
            reference.zero_grad()
            Backward(torch.device("cpu"))(cross_entropy(short(X), Y))
        step(update)
        update.clear()
    for p, q in zip(short.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


def test_momentum_that_begins_later():
    def begin(i, model, opt):
        if i == 3:
            for group in opt.param_groups:
                group["momentum"] = 0.9

    assert run("sgd", begin) == [0, 3]


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_whatever_is_changed_the_numbers_are_those_of_torch(data):
    kind = data.draw(st.sampled_from(list(KINDS)))
    when = data.draw(st.dictionaries(st.integers(1, 7), st.sampled_from(list(CHANGES)), max_size=3))

    def change(i, model, opt):
        if i in when and not (when[i] == "tensor_rate" and "sgd" in kind):
            CHANGES[when[i]][0](3 if when[i] != "freeze" else 2 + 2 * (i % 2), model, opt)

    run(kind, change, steps=8)


# ---- torch's own way -------------------------------------------------------------------------


def test_hooks_are_called():
    short, _, opt, _ = pair(torch.optim.AdamW)
    update, seen = Update(opt), []
    for i in range(4):
        gradients(short)
        if i == 2:
            opt.register_step_pre_hook(lambda *a: seen.append("before"))
            opt.register_step_post_hook(lambda *a: seen.append("after"))
        step(update)
        update.clear()
    assert seen == ["before", "after"] * 2


@pytest.mark.parametrize("place", ["pre", "post"])
def test_a_hook_is_called(place):
    short, _, opt, _ = pair(torch.optim.AdamW)
    update, seen = Update(opt), []
    gradients(short)
    step(update)
    getattr(opt, f"register_step_{place}_hook")(lambda *a: seen.append(1))
    step(update)
    assert seen == [1]


@pytest.mark.parametrize(
    "register", [register_optimizer_step_pre_hook, register_optimizer_step_post_hook]
)
def test_hooks_of_all_optimizers_are_called(register):
    short, _, opt, _ = pair(torch.optim.SGD)
    update, seen = Update(opt), []
    gradients(short)
    step(update)
    handle = register(lambda *a: seen.append(1))
    try:
        step(update)
    finally:
        handle.remove()
    assert seen == [1]


def test_a_wrapped_step_is_called():
    short, _, opt, _ = pair(torch.optim.AdamW)
    update, seen = Update(opt), []
    for _ in range(2):
        gradients(short)
        step(update)
    usual = opt.step
    opt.step = lambda *a: (seen.append(1), usual(*a))
    step(update)
    assert seen == [1]


def test_an_overridden_step_is_called():
    class Mine(torch.optim.AdamW):
        calls = 0

        def step(self, closure=None):
            self.calls += 1
            return super().step(closure)

    opt = Mine(mlp().parameters(), lr=0.1, fused=True)
    update = Update(opt)
    for _ in range(3):
        step(update)
    assert opt.calls == 3


def test_an_overridden_zero_grad_is_called():
    class Mine(torch.optim.AdamW):
        calls = 0

        def zero_grad(self, set_to_none=True):
            self.calls += 1

    opt = Mine(mlp().parameters(), lr=0.1)
    Update(opt).clear()
    assert opt.calls == 1


def test_a_wrapped_zero_grad_is_called():
    opt, seen = torch.optim.AdamW(mlp().parameters(), lr=0.1), []
    usual = opt.zero_grad
    opt.zero_grad = lambda: (seen.append(1), usual())
    Update(opt).clear()
    assert seen == [1]


def test_a_profiler_sees_the_step_of_torch():
    short, _, opt, _ = pair(torch.optim.AdamW)
    update = Update(opt)
    for _ in range(2):
        gradients(short)
        step(update)
    with torch.autograd.profiler.profile() as profile:
        step(update)
    assert "Optimizer.step#AdamW.step" in {event.name for event in profile.function_events}


class Tagged(torch.Tensor):
    pass


def test_a_subclass_of_a_tensor_is_left_to_torch():
    parameter = nn.Parameter(torch.ones(3).as_subclass(Tagged))
    opt = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    with Counted(torch.optim.AdamW) as counted:
        update = Update(opt)
        for _ in range(3):
            parameter.grad = torch.ones(3)
            step(update)
        assert counted.take(opt) == 3


def test_a_step_that_is_wrapped_in_its_class_is_called():
    short, _, opt, _ = pair(torch.optim.AdamW)
    update = Update(opt)
    for _ in range(2):
        gradients(short)
        step(update)
    with Counted(torch.optim.AdamW) as counted:
        step(update)
        assert counted.take(opt) == 1


@pytest.mark.parametrize("version", ["2.5.1", "2.16.0", "3.0"])
def test_an_unknown_torch_is_left_alone(version, monkeypatch):
    assert not known(version)
    monkeypatch.setattr(shortcuts, "known", lambda: False)
    opt = torch.optim.AdamW(mlp().parameters(), lr=0.1, fused=True)
    assert Update(opt)._kernel is None


@pytest.mark.skipif(not known(), reason="the shortcuts are off on this torch")
def test_this_torch_is_known():
    assert Update(torch.optim.AdamW(mlp().parameters()))._kernel is not None


def test_gradients_enabled_are_enabled_again_after_an_error():
    short, _, opt, _ = pair(torch.optim.AdamW)
    update = Update(opt)
    gradients(short)
    step(update)
    next(iter(opt.state.values()))["exp_avg"] = torch.ones(1, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        step(update)
    assert torch.is_grad_enabled()


# ---- the optimizer stays what it was -----------------------------------------------------------


def test_a_state_dict_goes_into_an_ordinary_optimizer(tmp_path):
    short, plain, opt, reference = pair(torch.optim.AdamW)
    update = Update(opt)
    for _ in range(3):
        for model in (short, plain):
            gradients(model)
        step(update)
        reference.step()
        update.clear()
        reference.zero_grad()
    torch.save(opt.state_dict(), tmp_path / "opt.pt")
    fresh = torch.optim.AdamW([{"params": g["params"]} for g in opt.param_groups], fused=True)
    fresh.load_state_dict(torch.load(tmp_path / "opt.pt"))
    gradients(short)
    gradients(plain)
    fresh.step()
    reference.step()
    same_state(fresh, reference)


def test_a_copy_of_the_optimizer_steps_by_itself():
    short, _, opt, _ = pair(torch.optim.AdamW)
    update = Update(opt)
    gradients(short)
    step(update)
    step(update)
    other = copy.deepcopy(opt)
    step(update)
    assert [counted(opt), counted(other)] == [3, 2]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copied_learner_goes_on_as_it_would_have(data, copied):
    learn = Learner(data, nn.Linear(64, 10))
    learn.fit(1, 0.01)
    other = copied(learn)
    for one in (learn, other):
        one.fit(1, 0.01)
    same_state(learn.opt, other.opt)
    assert torch.equal(learn.model.weight, other.model.weight)


# ---- backward ------------------------------------------------------------------------------------


def test_a_hook_may_write_into_the_gradient_of_the_loss(data):
    class Halve(Callback):
        def on_backward_begin(self, learn):
            learn.loss.register_hook(lambda grad: grad.mul_(0.5))

        def on_backward_end(self, learn):
            seen.append(learn.model.bias.grad.abs().sum().item())

    seen = []
    Learner(data, nn.Linear(64, 10), callbacks=[Halve()]).fit(1, 1e-9)
    assert min(seen[-5:]) > 0.5 * min(seen[:5])


def test_a_gradient_that_is_the_losss_own_may_be_clipped():
    weight = nn.Parameter(torch.zeros(1))
    backward = Backward(torch.device("cpu"))
    for _ in range(2):
        weight.grad = None
        backward(weight.squeeze())
        assert weight.grad.item() == 1.0
        weight.grad.mul_(0.1)


def test_a_subclass_of_a_tensor_is_left_to_the_backward_pass_of_torch(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.autograd, "backward", calls.append)
    loss = torch.ones((), requires_grad=True).as_subclass(Tagged)
    Backward(torch.device("cpu"))(loss)
    assert calls == [loss]


def test_a_default_device_at_import_does_not_matter():
    lines = (
        "import torch",
        "torch.set_default_device('meta')",
        "from onecycle.shortcuts import Backward",
        "torch.set_default_device('cpu')",
        "w = torch.ones((), requires_grad=True)",
        "Backward(w.device)(2 * w)",
        "assert w.grad == 2",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_backward_pass_is_that_of_torch(dtype):
    one, other = mlp().eval().to(dtype), mlp().eval().to(dtype)
    x, seen = X.to(dtype), []
    backward = Backward(torch.device("cpu"))
    for model in (one, other):
        model[-1].weight.register_hook(lambda grad: seen.append(grad.clone()))
    for _ in range(2):  # which add up
        backward(cross_entropy(one(x), Y))
        cross_entropy(other(x), Y).backward()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert torch.equal(seen[0], seen[1])


def test_a_graph_is_freed_by_its_backward_pass():
    loss = cross_entropy(mlp()(X), Y)
    backward = Backward(torch.device("cpu"))
    backward(loss)
    with pytest.raises(RuntimeError, match="second time"):
        backward(loss)


def test_a_logged_backward_pass_is_left_to_torch(caplog, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.autograd, "backward", calls.append)
    backward, loss = Backward(torch.device("cpu")), cross_entropy(mlp()(X), Y)
    with caplog.at_level(logging.DEBUG, "torch.autograd.graph"):
        backward.begin()
        backward(loss)
    assert calls == [loss]


# ---- in a learner -------------------------------------------------------------------------------


def train(data, opt_func, monkeypatch, direct):
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(shortcuts, "known", lambda: direct)
        learn = Learner(data, mlp(), opt_func=opt_func, wd=None)
    learn.fit_one_cycle(2, 0.01)
    return learn


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd momentum"])
def test_a_fit_is_the_same_with_and_without(kind, data, monkeypatch):
    one, other = (train(data, KINDS[kind], monkeypatch, direct) for direct in (True, False))
    assert one.recorder.losses.tolist() == other.recorder.losses.tolist()
    same_state(one.opt, other.opt)


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd momentum"])
def test_fused_and_unfused_agree(kind, data, monkeypatch):
    fused = train(data, KINDS[kind], monkeypatch, direct=True)
    unfused = train(data, partial(KINDS[kind], fused=False), monkeypatch, direct=True)
    assert fused.opt.param_groups[0]["fused"]
    torch.testing.assert_close(fused.recorder.losses, unfused.recorder.losses, rtol=2e-4, atol=1e-6)


def test_sparse_gradients_are_not_fused(data):
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.EmbeddingBag(10, 4, sparse=True, mode="sum")

        def forward(self, x):
            return self.table(x)

    x = torch.arange(20).reshape(10, 2) % 10
    learn = Learner(([(x, torch.arange(10) % 4)], None), Bag(), opt_func=torch.optim.SGD, wd=0)
    learn.fit(2, 0.1)
    assert not learn.opt.param_groups[0].get("fused")


@pytest.mark.parametrize("option", ["fused", "foreach", "capturable", "differentiable"])
def test_what_the_user_chose_stays(option, data):
    learn = Learner(data, mlp(), opt_func=partial(torch.optim.AdamW, **{option: False}))
    assert not learn.opt.param_groups[0][option]
    assert option == "fused" or not learn.opt.param_groups[0]["fused"]
