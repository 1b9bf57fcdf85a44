"""Averaged weights: what is averaged, when it is used, and that training does not notice."""

import copy
import gc
import math
import sys
import weakref

import pytest
import torch
from helpers import Halt, everything, make, mlp, plain, same, sgd, split_in_two
from torch import nn

from onecycle import EMA, SWA, Callback, CancelTrain, DataLoaders, Learner, accuracy
from onecycle.averaging import Average, estimate_norms
from onecycle.data import digits, random_crop


class Weights(Callback):
    """A copy of the weights after every step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, learn):
        self.seen.append({n: p.detach().clone() for n, p in learn.model.named_parameters()})


def recorded(data, callback, epochs=2, model=None):
    learn, weights = Learner(data, model or plain(), opt_func=sgd), Weights()
    learn.fit(epochs, 0.1, callbacks=[callback, weights])
    return learn, weights.seen


def close(values, expected):
    return all(
        torch.allclose(values[n].double(), expected[n], rtol=1e-5, atol=1e-6) for n in expected
    )


# ---- the average ---------------------------------------------------------------------------------


@pytest.mark.parametrize("half_life", [0.01, 0.05, 0.5])
def test_ema_is_the_recursion_of_its_formula(data, half_life):
    ema = EMA(half_life)
    _, seen = recorded(data, ema)
    expected = {name: value.double() for name, value in seen[0].items()}
    for t, weights in enumerate(seen[1:], start=2):
        share = 1.0 - 0.5 ** (1.0 / (half_life * t))
        for name, value in weights.items():
            expected[name] = expected[name] + share * (value.double() - expected[name])
    assert ema.steps == len(seen) == 20
    assert close(ema.average.values, expected)


@pytest.mark.parametrize(("start", "first"), [(0.0, 0), (0.5, 10), (0.75, 15), (1.0, 19)])
def test_swa_is_the_mean_of_the_last_weights(data, start, first):
    swa = SWA(start)
    _, seen = recorded(data, swa)
    last = seen[first:]
    assert swa.steps == len(last)
    assert close(
        swa.average.values, {n: torch.stack([w[n].double() for w in last]).mean(0) for n in last[0]}
    )


def test_every_fit_begins_anew(data):
    ema = EMA()
    learn, _ = recorded(data, ema, epochs=1)
    learn.fit(1, 0.1, callbacks=[ema])
    assert ema.steps == 10


def test_half_precision_is_averaged_in_single():
    model = nn.Sequential(nn.Linear(2, 2).bfloat16(), nn.Linear(2, 1).double(), nn.Linear(1, 1))
    average = Average(model)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
        average.update(1.0)
        for p in model.parameters():
            p.fill_(2.0)
    average.update(1.0 / 512)
    assert [v.dtype for v in average.values.values()][::2] == [
        torch.float32,
        torch.float64,
        torch.float32,
    ]
    assert all((v == 1.0 + 1.0 / 512).all() for v in average.values.values())


def test_parameters_of_whole_numbers_are_left_alone():
    model = nn.ParameterDict({"i": nn.Parameter(torch.arange(3), requires_grad=False)})
    model["c"] = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    average = Average(model)
    model["c"].data *= 3
    average.update(0.5)
    assert average.values.keys() == {"c"}
    assert torch.equal(average.values["c"], torch.full((2,), 2.0, dtype=torch.complex64))


def test_the_model_is_let_go_after_the_fit(data):
    ema, learn = EMA(), Learner(data, plain())
    learn.fit(1, 0.1, callbacks=[ema])
    there = weakref.ref(learn.model.weight)
    del learn
    gc.collect()
    assert there() is None


def test_frozen_parameters_stay_as_they_are(data):
    ema = EMA(at_end=True)
    learn = Learner(data, mlp(), splitter=split_in_two)
    learn.freeze()
    before = learn.model[0].weight.clone()
    learn.fit(1, 0.1, callbacks=[ema])
    assert torch.equal(learn.model[0].weight, before)


def test_a_step_calls_few_functions(data):
    learn, ema = Learner(data, mlp()), EMA()
    ema.on_train_begin(learn)
    ema.on_step_end(learn)
    count = 0

    def look(frame, event, arg):
        nonlocal count
        count += event == "call"

    sys.setprofile(look)
    ema.on_step_end(learn)
    sys.setprofile(None)
    assert count <= 10


# ---- columns -------------------------------------------------------------------------------------


def test_both_columns_are_in_the_history(data):
    learn = Learner(data, mlp(), metrics=[accuracy])
    learn.fit(2, 0.01, callbacks=[EMA()])
    for row in learn.recorder.history:
        assert row["ema_valid_loss"] != row["valid_loss"]
        assert "ema_accuracy" in row


def test_the_column_is_the_validation_of_the_averages(data):
    ema, learn = EMA(), Learner(data, mlp(), metrics=[accuracy])
    learn.fit(1, 0.01, callbacks=[ema])
    with ema.applied(learn):
        scores = learn.validate()
    row = learn.recorder.history[-1]
    assert scores == {name: row[f"ema_{name}"] for name in scores}
    assert learn.validate() == {name: row[name] for name in scores}


def test_swa_has_columns_once_it_has_begun(data, capsys, monkeypatch):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    learn = Learner(data, plain())
    learn.fit(4, 0.01, callbacks=[SWA(0.5)])
    assert ["swa_valid_loss" in row for row in learn.recorder.history] == [0, 0, 1, 1]
    out = capsys.readouterr().out
    assert out.count("train_loss") == 2
    assert "nan" not in out


def test_a_metric_object_keeps_what_the_model_itself_scored(data):
    torchmetrics = pytest.importorskip("torchmetrics")
    metric = torchmetrics.Accuracy(task="multiclass", num_classes=10)
    learn = Learner(data, mlp(), metrics={"acc": metric}, device="cpu")
    learn.fit(1, 0.003, callbacks=[EMA(0.4)])
    row = learn.recorder.history[-1]
    assert metric.compute().item() == row["acc"] != row["ema_acc"]


def test_without_validation_there_are_no_columns(digit_tensors):
    x, y = digit_tensors
    learn = Learner(DataLoaders.from_tensors(x, y), plain())
    ema = EMA()
    learn.fit(1, 0.01, callbacks=[ema])
    assert ema.steps == 23
    assert not [name for name in learn.recorder.history[0] if name.startswith("ema")]


def test_two_of_one_prefix_are_refused_and_another_prefix_is_taken(data):
    one, two = EMA(0.05), EMA(0.2)
    learn = Learner(data, plain())
    with pytest.raises(ValueError, match="callbacks: 2 would write the columns ema_"):
        learn.fit(1, 0.01, callbacks=[one, two])
    two.prefix = "slow"
    learn.fit(1, 0.01, callbacks=[one, two])
    assert {"ema_valid_loss", "slow_valid_loss"} <= learn.recorder.history[-1].keys()


def test_losses_of_averages_are_drawn_with_the_losses(data):
    learn = Learner(data, mlp(), metrics=[accuracy])
    learn.fit(2, 0.01, callbacks=[EMA(), SWA(0.5)])
    lines = {line.get_label(): line for line in learn.recorder.plot_losses().lines}
    assert list(lines)[2:] == ["validation", "ema_valid_loss", "swa_valid_loss"]
    column = learn.recorder.columns()["ema_valid_loss"]
    assert lines["ema_valid_loss"].get_ydata().tolist() == column
    names = [line.get_label() for line in learn.recorder.plot_metrics().lines]
    assert names == ["accuracy", "ema_accuracy", "swa_accuracy"]


# ---- applied -------------------------------------------------------------------------------------


@pytest.fixture(params=["copy", "recompute"])
def fitted(request, data):
    ema = EMA(buffers=request.param)
    learn = Learner(data, mlp())
    learn.fit(2, 0.01, callbacks=[ema])
    return learn, ema


def test_applied_restores_bit_for_bit(fitted):
    learn, ema = fitted
    before, places = everything(learn), [p.data_ptr() for p in learn.model.parameters()]
    with ema.applied(learn):
        assert [p.data_ptr() for p in learn.model.parameters()] == places
        assert all(torch.equal(p, ema.average.values[n]) for n, p in learn.model.named_parameters())
    assert same(everything(learn), before)


def test_applied_restores_after_an_error(fitted):
    learn, ema = fitted
    before = everything(learn)
    with pytest.raises(ZeroDivisionError), ema.applied(learn):
        raise ZeroDivisionError
    assert same(everything(learn), before)


def test_predictions_differ_inside(fitted, digit_tensors):
    learn, ema = fitted
    x = digit_tensors[0][:8]
    outside = learn.predict(x)
    with ema.applied(learn):
        assert not torch.equal(learn.predict(x), outside)
    assert torch.equal(learn.predict(x), outside)


def test_applied_before_any_step_is_refused(learn):
    with pytest.raises(ValueError, match="EMA has averaged no weights yet"), EMA().applied(learn):
        pass


def test_applied_to_another_model_is_refused(fitted, data):
    _, ema = fitted
    with pytest.raises(ValueError, match=r"learn: .*'0.weight'"):
        ema.applied(Learner(data, nn.Sequential(nn.Linear(64, 10)))).__enter__()


def test_a_saved_average_is_applied_to_a_new_learner(fitted, data, digit_tensors):
    learn, ema = fitted
    other, loaded = Learner(data, mlp()), EMA()
    other.model.load_state_dict(learn.model.state_dict())
    loaded.load_state_dict(copy.deepcopy(ema.state_dict()))
    x = digit_tensors[0][:8]
    ema.buffers = "copy"
    with ema.applied(learn), loaded.applied(other):
        assert torch.equal(learn.predict(x), other.predict(x))


# ---- at the end ----------------------------------------------------------------------------------


def test_at_end_the_model_keeps_the_average(data):
    ema, learn = EMA(at_end=True, buffers="recompute"), Learner(data, mlp())
    learn.fit(2, 0.01, callbacks=[ema])
    assert learn.validate()["valid_loss"] == learn.recorder.history[-1]["ema_valid_loss"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, CancelTrain])
def test_an_error_leaves_the_weights_as_trained_and_a_signal_does_not(data, error):
    class Stops(Halt):
        def on_step_end(self, learn):
            if learn.step == self.at:
                raise error

    ema, weights, learn = EMA(at_end=True), Weights(), Learner(data, plain())
    try:
        learn.fit(1, 0.1, callbacks=[ema, weights, Stops(5)])
    except KeyboardInterrupt:
        expected = weights.seen[-1]
    else:
        expected = ema.average.values
    assert all(torch.equal(p, expected[n]) for n, p in learn.model.named_parameters())


def test_a_fit_that_ends_before_swa_begins_keeps_its_weights(data):
    swa, weights, learn = SWA(0.9, at_end=True), Weights(), Learner(data, plain())
    learn.fit_one_cycle(1, 0.1, tot_epochs=4, callbacks=[swa, weights])
    assert all(torch.equal(p, weights.seen[-1][n]) for n, p in learn.model.named_parameters())


# ---- training does not notice --------------------------------------------------------------------


GIVEN = {
    "ema": lambda: [EMA()],
    "swa": lambda: [SWA()],
    "both": lambda: [EMA(buffers="recompute"), SWA(0.1, buffers="copy")],
}


@pytest.mark.parametrize("loader", ["augmented", "torch", "own_generator"])
@pytest.mark.parametrize("callbacks", GIVEN.values(), ids=GIVEN)
def test_training_is_bit_identical_without_it(digit_tensors, loader, callbacks):
    ends = []
    for given in ([], callbacks()):
        learn = make(digit_tensors, loader=loader, model=mlp())
        if loader == "augmented":
            x, y = digits().train.tensors
            augment = [random_crop(1), lambda x: x.flatten(1)]
            train = DataLoaders.from_tensors(x[:300], y[:300], batch_size=30, augment=augment).train
            learn.data.train = train
        learn.fit(3, 0.01, callbacks=given)
        end = everything(learn)
        names = ("tensors", "opt", "modes", "torch", "numpy", "python", "loader")
        ends.append({name: end[name] for name in names})
    assert same(*ends)


# ---- batch norm ----------------------------------------------------------------------------------


def by_hand(learn, batches):
    """Mean over batches of the statistics of what reaches the batch norm of `mlp`."""
    inside = [learn.model[0](x).detach() for x, _ in batches]
    means, variances = zip(*((h.mean(0), h.var(0)) for h in inside), strict=True)
    return torch.stack(means).mean(0), torch.stack(variances).mean(0)


def test_recomputed_statistics_are_those_by_hand(fitted):
    learn, ema = fitted
    ema.buffers = "recompute"
    learn.data.train.set_epoch(0)
    batches = list(learn.data.train)
    learn.data.train.set_epoch(1)
    norm = learn.model[1]
    with ema.applied(learn):
        mean, variance = by_hand(learn, batches)
        assert torch.allclose(norm.running_mean, mean, atol=1e-6)
        assert torch.allclose(norm.running_var, variance, atol=1e-6)
        assert norm.momentum == 0.1
        assert norm.num_batches_tracked == 20


def test_dropout_is_off_while_they_are_recomputed(data):
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(64), nn.Linear(64, 10))
    learn = Learner(data, net)
    estimate_norms(learn)
    mean = torch.stack([x.mean(0) for x, _ in data.train]).mean(0)
    assert torch.allclose(net[1].running_mean, mean, atol=1e-6)


def test_at_most_fifty_batches_are_read(digit_tensors):
    x, y = digit_tensors
    learn = Learner(DataLoaders.from_tensors(x, y, batch_size=10), mlp())
    estimate_norms(learn)
    mean, _ = by_hand(learn, list(learn.data.train)[:50])
    assert torch.allclose(learn.model[1].running_mean, mean, atol=1e-6)


@pytest.mark.parametrize("loader", ["in_memory", "torch", "own_generator"])
def test_estimating_leaves_no_other_trace(digit_tensors, loader):
    learn = make(digit_tensors, loader=loader)  # dropout, and a buffer that counts calls
    before = everything(learn)
    kept = [b.clone() for b in learn.model.net[1].buffers()]
    estimate_norms(learn)
    norm = learn.model.net[1]
    assert not torch.equal(norm.running_mean, kept[0])
    with torch.no_grad():
        norm.running_mean.copy_(kept[0])
        norm.running_var.copy_(kept[1])
    assert same(everything(learn), before)


def test_frozen_batch_norm_and_one_that_is_not_reached_stay(data):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.extra = mlp(), nn.BatchNorm1d(3)
            self.extra.running_mean.fill_(7.0)

        def forward(self, x):
            return self.net(x)

    model = Model()
    learn = Learner(
        data, model, splitter=lambda m: [m.net[:4], [m.net[4], m.extra]], train_bn=False
    )
    learn.freeze()
    before = [b.clone() for b in model.buffers()]
    estimate_norms(learn)
    assert same(list(model.buffers()), before)


# ---- arguments, and what it is good for ----------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: EMA(0.0), lambda: EMA(1.5), lambda: EMA("5%")])
def test_a_bad_half_life_is_refused(make):
    with pytest.raises((ValueError, TypeError), match="half_life must"):
        make()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: SWA(-0.1), "start"),
        (lambda: SWA(1.1), "start"),
        (lambda: EMA(buffers="both"), "buffers"),
        (lambda: SWA(at_end=1), "at_end"),
    ],
)
def test_bad_arguments_are_refused(make, name):
    with pytest.raises((ValueError, TypeError), match=f"{name} must"):
        make()


def test_at_a_flat_rate_the_average_is_no_worse(digit_tensors):
    x, y = digit_tensors
    better = 0
    for seed in range(5):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
        data = DataLoaders.from_tensors(
            x[:1000], y[:1000], valid=(x[1000:], y[1000:]), batch_size=50, seed=seed
        )
        learn = Learner(data, net, opt_func=sgd)
        learn.fit(6, 0.1, callbacks=[EMA()])
        row = learn.recorder.history[-1]
        better += row["ema_valid_loss"] <= row["valid_loss"]
        assert math.isfinite(row["ema_valid_loss"])
    assert better >= 4


def test_a_decay_is_no_half_life():
    with pytest.raises(ValueError, match=r"half_life must be a share .* got 0\.999; a decay"):
        EMA(0.999)
