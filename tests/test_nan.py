"""What is not finite reaches neither parameters nor optimizer, is told, and spoils no average."""

import math

import pytest
import torch
from helpers import mlp, plain, same, sgd, weights
from torch import nn

from onecycle import Callback, Learner
from onecycle.callbacks.recorder import RunningLoss
from onecycle.guard import Guard

NAN, INF = float("nan"), float("inf")


class Spoil(torch.autograd.Function):
    """The identity, whose gradient is `value`."""

    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.full_like(grad, ctx.value), None


class At(Callback):
    """Spoil loss, gradient or input from step `first` on, once or for good; steps count from 1."""

    def __init__(self, where, value, first, for_good=False):
        self.where, self.value, self.first, self.for_good = where, value, first, for_good
        self.batch, self.before = 0, None

    def bad(self):
        return self.batch == self.first or (self.for_good and self.batch >= self.first)

    def on_batch_begin(self, learn):
        self.batch += 1
        if self.batch == self.first:
            self.before = weights(learn)
        if self.where == "input" and self.bad():
            x, y = learn.batch
            learn.batch = (x * self.value, y)

    def on_backward_begin(self, learn):
        if self.where == "loss" and self.bad():
            learn.loss = learn.loss * self.value
        if self.where == "gradient" and self.bad():
            learn.loss = Spoil.apply(learn.loss, self.value)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("first", [1, 4])
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("where", ["loss", "gradient", "input"])
def test_it_stops_before_the_step(data, where, value, first, for_good, clip):
    spoil = At(where, value, first, for_good)
    learn = Learner(data, mlp(), opt_func=sgd, callbacks=[spoil], clip=clip)
    with (
        pytest.raises(FloatingPointError, match=rf"at step {first}, .*learning rate 0.01.*lower")
        if (where != "input")
        else pytest.raises(FloatingPointError, match=f"at step {first}, .*clean the data")
    ):
        learn.fit(1, 0.01)
    assert same(weights(learn)[0], spoil.before[0])
    assert len(learn.recorder.losses) == first - 1
    learn.callbacks = []
    learn.fit(1, 0.01)
    assert all(math.isfinite(loss) for loss in learn.recorder.losses)
    assert math.isfinite(learn.scores["valid_loss"])


@pytest.mark.parametrize("where", ["loss", "gradient", "input"])
def test_skip_leaves_the_batch_out(data, where):
    learn = Learner(data, mlp(), callbacks=[At(where, NAN, 3)], on_nan="skip")
    with pytest.warns(UserWarning, match="batch skipped: .*at step 3"):
        learn.fit(2, 0.01)
    assert len(learn.recorder.losses) == 19
    assert all(
        math.isfinite(row["train_loss"] + row["valid_loss"]) for row in learn.recorder.history
    )


def test_a_norm_too_large_for_its_type_is_told(data):
    class Huge(Callback):
        def on_backward_begin(self, learn):
            learn.loss = learn.loss * 1e25

    learn = Learner(data, plain(), clip=1.0, callbacks=[Huge()])
    before = weights(learn)
    with pytest.raises(FloatingPointError, match="norm of the gradients is inf at step 1"):
        learn.fit(1, 0.1)
    assert same(before, weights(learn))


def test_skip_keeps_the_other_batches_of_a_step(data):
    learn = Learner(data, plain(), callbacks=[At("loss", NAN, 2)], accumulate=3, on_nan="skip")
    with pytest.warns(UserWarning, match="batch skipped"):
        learn.fit(1, 0.01)
    assert learn.step == 3
    assert torch.isfinite(learn.model.weight).all()


def test_ignore_trains_on_it(data):
    learn = Learner(data, plain(), callbacks=[At("loss", NAN, 2)], on_nan="ignore")
    learn.fit(1, 0.01)
    assert torch.isnan(learn.model.weight).any()
    assert math.isnan(learn.recorder.history[0]["train_loss"])


@pytest.mark.parametrize(
    ("losses", "mean"), [([1.0, NAN, 3.0], 2.5), ([1.0, NAN], NAN), ([NAN], NAN), ([INF, 2.0], 2.0)]
)
def test_the_mean_of_an_epoch_leaves_out_what_was_bad_once(losses, mean):
    running = RunningLoss()
    running.add(losses, [1, 9, 3][: len(losses)])
    assert running.mean() == pytest.approx(mean, nan_ok=True)


def test_a_warning_says_that_steps_are_missing_from_a_mean(data):
    class Recovering(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += self.training
            return super().forward(x) if self.calls != 2 else super().forward(x).detach() * NAN

    class OnlyThere(Callback):
        def on_backward_begin(self, learn):
            if not learn.loss.requires_grad:
                learn.loss = learn.loss + 0 * sum(p.sum() for p in learn.model.parameters())

        def on_backward_end(self, learn):
            for p in learn.model.parameters():
                p.grad.nan_to_num_()

    learn = Learner(data, Recovering(64, 10), callbacks=[OnlyThere], on_nan="ignore")
    with pytest.warns(UserWarning, match="1 of 10 steps of epoch 1 had no finite loss"):
        learn.fit(1, 0.01)
    assert math.isfinite(learn.recorder.history[0]["train_loss"])


@pytest.mark.parametrize(("policy", "epochs"), [("raise", 1), ("skip", 2), ("ignore", 2)])
def test_in_validation(data, policy, epochs):
    x, y = data.valid.tensors
    learn = Learner((data.train, [(x, y), (x * NAN, y)]), mlp(), on_nan=policy)
    if policy == "raise":
        with pytest.raises(FloatingPointError, match=r"valid_loss is nan after step 10, .*rate"):
            learn.fit(2, 0.01)
    elif policy == "skip":
        with pytest.warns(UserWarning, match="valid_loss is nan after step"):
            learn.fit(2, 0.01)
    else:
        learn.fit(2, 0.01)
    assert len(learn.recorder.history) == epochs
    assert all(torch.isfinite(t).all() for t in learn.model.state_dict().values())


def test_buffers_of_any_kind_are_put_back(data):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.norm = plain(), nn.BatchNorm1d(64)
            self.register_buffer("inside", torch.zeros(1))
            self.register_buffer("new", torch.zeros(1))

        def forward(self, x):
            self.inside += x.mean().detach() * 0 + 1
            self.new = self.new + x.mean().detach() * 0 + 1
            return self.net(self.norm(x))

    learn = Learner((data.train, None), Counting(), callbacks=[At("input", NAN, 4)])
    with pytest.raises(FloatingPointError):
        learn.fit(1, 0.01)
    assert (learn.model.inside.item(), learn.model.new.item()) == (3.0, 3.0)
    assert torch.isfinite(learn.model.norm.running_var).all()
    assert learn.model.norm.num_batches_tracked == 3


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_device_that_is_not_waited_for_leaves_the_steps_out_itself(data, policy):
    """The way of an accelerator, on the CPU: torch's fused optimizers take found_inf there, too."""

    class Unwaited(Guard):
        def begin(self, modules, *, scaled=False):
            super().begin(modules, scaled=scaled)
            self._waits = False

    model = mlp()
    fused = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    spoil = At("gradient", NAN, 4)
    learn = Learner(data, model, opt_func=fused, callbacks=[spoil], on_nan=policy)
    learn.training_step.guard = Unwaited(learn.opt, learn.device, policy)
    if policy == "raise":
        with pytest.raises(FloatingPointError, match="not finite at step 4"):
            learn.fit(1)
        for parameter, before in zip(model.parameters(), spoil.before[0].items(), strict=False):
            assert parameter.shape != before[1].shape or torch.equal(parameter, before[1])
    else:
        with pytest.warns(UserWarning, match="1 steps .* were left out"):
            learn.fit(1)
        assert learn.opt.state[next(model.parameters())]["step"] == 9
    assert "found_inf" not in vars(learn.opt)


def test_a_wrong_policy_is_named(data):
    with pytest.raises(ValueError, match="on_nan must be one of"):
        Learner(data, plain(), on_nan="stop")


# ---- where it began ------------------------------------------------------------------------------


class Roots(nn.Module):
    """Takes a root, of which the gradient at 0 is infinite, in the middle."""

    def __init__(self, at=0.0):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10)
        self.drop, self.root, self.at = nn.Dropout(0.5), Root(), at

    def forward(self, x):
        x = self.drop(self.norm(self.first(x)))
        return self.last(self.root(x, self.at))


class Root(nn.Module):
    def forward(self, x, at):
        return x + at * (x - x).abs().sqrt() if at else x + (x - 100).sqrt()


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Roots, r"the output of 'root' \(Root\)\. Use"),
        (lambda: Roots(1.0), r"not finite.*the gradient of 'norm\.weight'\. Use"),
    ],
)
def test_locate_names_the_first_module_or_parameter(data, model, text, clip):
    learn = Learner(data, model(), on_nan="locate", clip=clip)
    before = weights(learn)
    with pytest.raises(FloatingPointError, match=text) as error:
        learn.fit(1, 0.01)
    assert "Not finite first" in str(error.value)
    assert same(weights(learn), before)
    assert not any(module._forward_hooks for module in learn.model.modules())
    assert all(not p._backward_hooks for p in learn.model.parameters())


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (At("input", NAN, 3), r"the output of '0' \(Linear\), whose input is not finite either"),
        (At("gradient", NAN, 3), "second pass over the batch is finite: look at callbacks"),
    ],
)
def test_locate_tells_what_it_cannot_name(data, spoil, text):
    learn = Learner(data, mlp(), callbacks=[spoil], on_nan="locate")
    with pytest.raises(FloatingPointError, match=text):
        learn.fit(1, 0.01)
    assert same(weights(learn)[0], spoil.before[0])


class Fails:
    """A loss that is not finite when it is trained on first, and then raises."""

    calls = 0

    def __call__(self, pred, y):
        self.calls += pred.requires_grad
        return pred.sum() * NAN * (1 // (self.calls < 2))


@pytest.mark.parametrize(
    ("loss_func", "text"),
    [
        (lambda pred, y: pred.sum() * NAN, "every module's output is finite, the loss of them"),
        (Fails(), "A second pass over the batch, to look for the place, raised ZeroDivisionError"),
    ],
)
def test_locate_never_hides_the_error(data, loss_func, text):
    learn = Learner(data, mlp(), loss_func, on_nan="locate")
    with pytest.raises(FloatingPointError, match=f"(?i){text}"):
        learn.fit(1, 0.01)


def test_locate_costs_nothing_and_draws_nothing_while_all_is_well(data):
    runs = []
    for policy in ("locate", "raise"):
        learn = Learner(data, mlp(), on_nan=policy)
        torch.manual_seed(0)
        learn.fit(1)
        runs.append((weights(learn), torch.get_rng_state()))
    assert same(*runs)


def test_locate_leaves_generators_and_modes_as_they_are(data):
    states = []
    for policy in ("locate", "raise"):
        learn = Learner(data, Roots(), on_nan=policy)
        torch.manual_seed(0)
        with pytest.raises(FloatingPointError):
            learn.fit(1)
        states.append((torch.get_rng_state(), [m.training for m in learn.model.modules()]))
    assert same(*states)
