"""Several optimizers behind one schedule, and Muon."""

import pickle
from functools import partial

import pytest
import torch
from helpers import Halt, everything, mlp, same, sgd, split_in_two, stepped, weights
from schedulefree import SGDScheduleFree
from torch import nn

from onecycle import Checkpoint, Learner, ScheduleFree, muon_split, optimizers
from onecycle.muon import hidden_weights
from onecycle.schedules import one_cycle, one_cycle_momentum, sample
from onecycle.together import Together
from onecycle.tracking import config
from onecycle.tuning.twin import twin

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9")
adam = partial(torch.optim.AdamW, lr=4e-3)


def deep():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 10))


def both(model):
    """Two finished optimizers; a number as learning rate is for the second."""
    first, last = list(model.parameters())[:2], list(model.parameters())[2:]
    return [sgd(first, lr=0.1), adam(last)]


MAKES = [both, pytest.param(muon_split, marks=needs_muon)]


def of_parts(data, **options):
    funcs = [partial(sgd, lr=0.1), adam]
    return Learner(data, mlp(), opt_func=funcs, splitter=split_in_two, **options)


def plain_loop(model, data, opts, peaks, epochs):
    """Two optimizers and two schedules by hand: the reference."""
    total = epochs * len(data.train)
    rates = [sample(one_cycle(peak, total_steps=total), total) for peak in peaks]
    moms = sample(one_cycle_momentum((0.95, 0.85), total_steps=total), total)
    step = 0
    for epoch in range(epochs):
        data.train.set_epoch(epoch)
        for x, y in data.train:
            for opt, own in zip(opts, rates, strict=True):
                for group in opt.param_groups:
                    group["lr"] = own[step]
                    if "betas" in group:
                        group["betas"] = (moms[step], 0.999)
                    else:
                        group["momentum"] = moms[step]
            nn.functional.cross_entropy(model(x), y).backward()
            for opt in opts:
                opt.step()
                opt.zero_grad()
            step += 1


@pytest.mark.parametrize("make", MAKES)
def test_a_1cycle_is_that_of_a_hand_written_loop(data, make):
    learn = Learner(data, deep(), opt_func=make)
    learn.fit_one_cycle(2)
    model = deep()
    plain_loop(model, data, make(model), optimizers.current(learn.opt, "lr"), 2)
    assert same(dict(learn.model.state_dict()), dict(model.state_dict()))


def test_a_number_is_for_the_last_and_the_others_keep_their_ratio(data):
    learn = of_parts(data)
    rates = stepped(learn)
    learn.fit_one_cycle(2, 0.01)
    first, last = ([own[i] for own in rates] for i in (0, -1))
    assert max(last) == 0.01
    assert [a / b for a, b in zip(first, last, strict=True)] == pytest.approx([25.0] * 20)


def test_every_part_has_its_group_decay_and_momentum(data):
    learn = of_parts(data, wd=0.3)
    assert config(learn)["optimizer"] == "SGD + AdamW"
    opt = learn.opt
    values = [(g["layer_group"], g["weight_decay"]) for g in opt.param_groups]
    assert values == [(0, 0.3), (0, 0.0), (1, 0.3), (1, 0.0)]
    optimizers.write(opt, "mom", [0.5])
    sgd_groups, adam_groups = opt.members[0].param_groups, opt.members[1].param_groups
    assert sgd_groups[0]["momentum"] == adam_groups[0]["betas"][0] == 0.5


@pytest.mark.parametrize("make", MAKES)
def test_lr_find_gives_a_rate_and_leaves_no_trace(data, make):
    learn = Learner(data, deep(), opt_func=make, clip=1.0)
    learn.fit_one_cycle(1)
    before = everything(learn)
    found = learn.lr_find(num_it=30)
    after = everything(learn)
    assert same(before, after)
    assert found.lrs[-1] <= 10.0


@pytest.mark.parametrize("make", MAKES)
def test_a_run_that_was_killed_ends_bit_for_bit_as_one_that_was_not(data, tmp_path, make):
    def run(*callbacks):
        learn = Learner(data.again(), deep(), opt_func=make)
        learn.fit_one_cycle(2, callbacks=[Checkpoint(path, every_steps=3), *callbacks])
        return learn

    path = tmp_path / "whole"
    whole = run()
    path = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        run(Halt(8))
    learn = Learner(data.again(), deep(), opt_func=make)
    learn.resume(path, callbacks=[Halt(99)])
    assert same(weights(whole), weights(learn))


def test_a_file_is_of_these_optimizers(data, tmp_path):
    path = of_parts(data).save(tmp_path / "model")
    other = Learner(data, mlp(), opt_func=[adam, adam], splitter=split_in_two)
    with pytest.raises(ValueError, match=r"SGD \+ AdamW, this learner has AdamW \+ AdamW"):
        other.load(path)


@pytest.mark.parametrize("copied", [lambda opt: pickle.loads(pickle.dumps(opt)), None])
def test_a_copy_is_whole_and_apart(data, copied):
    learn = of_parts(data)
    learn.fit_one_cycle(1)
    other = twin(learn).opt if copied is None else copied(learn.opt)
    assert same(other.state_dict(), learn.opt.state_dict())
    other.param_groups[0]["lr"] = 7.0
    assert other.members[0].param_groups[0]["lr"] == 7.0 != learn.opt.param_groups[0]["lr"]


def test_parts_can_be_frozen(data):
    learn = of_parts(data)
    learn.fine_tune(1)
    assert len(learn.recorder.losses) == 20


def test_what_has_no_layers_cannot_be_frozen(data):
    learn = Learner(data, deep(), opt_func=both)
    learn.unfreeze()
    with pytest.raises(ValueError, match=r"groups of SGD \+ AdamW are not its layers"):
        learn.freeze()


def test_half_precision_accumulation_and_clipping(data):
    learn = of_parts(data, precision="fp16", accumulate=2, clip=1.0)
    learn.fit_one_cycle(2)
    assert learn.recorder.history[-1]["train_loss"] < learn.recorder.history[0]["train_loss"]


def test_what_is_not_finite_reaches_no_member(data):
    learn = of_parts(data, on_nan="skip")
    x, y = next(iter(data.train))
    learn.data.train = [(x * float("nan"), y), (x, y)]
    with pytest.warns(UserWarning, match="batch skipped"):
        learn.fit(1)
    assert len(learn.recorder.losses) == 1


def test_one_of_them_may_average(data):
    opts = [partial(SGDScheduleFree, lr=0.1), adam]
    learn = Learner(data, mlp(), opt_func=opts, splitter=split_in_two, callbacks=[ScheduleFree])
    learn.fit(1)
    assert not learn.opt.members[0].param_groups[0]["train_mode"]


def test_without_a_momentum_of_all_it_stays(data):
    opts = [torch.optim.SGD, adam]
    learn = Learner(data, mlp(), opt_func=opts, splitter=split_in_two)
    with pytest.warns(UserWarning, match="SGD has no momentum in use"):
        learn.fit_one_cycle(1)
    assert set(learn.recorder.moms) == {0.9}


def less(model):
    return both(model)[:1]


def twice(model):
    return [*both(model), sgd(model[0].parameters())]


@pytest.mark.parametrize(
    ("opt_func", "error", "match"),
    [
        (less, ValueError, "none has '2.weight'"),
        (twice, ValueError, "'0.weight' is in two"),
        (lambda model: both(model)[0], ValueError, "none has '2.weight'"),
        (lambda model: "adam", TypeError, "or a list of them, got 'adam'"),
        ([torch.optim.SGD, torch.optim.AdamW], ValueError, "2 factories for 1 layer groups"),
        ([torch.optim.SGD, adam(deep().parameters())], TypeError, "not some of each"),
        (lambda model: [torch.optim.LBFGS(model.parameters())], TypeError, "needs a closure"),
    ],
)
def test_what_cannot_be_together(data, opt_func, error, match):
    with pytest.raises(error, match=match):
        Learner(data, deep(), opt_func=opt_func)


def test_a_group_must_be_added_to_a_member():
    with pytest.raises(TypeError, match=r"one of SGD \+ AdamW"):
        Together(both(deep())).add_param_group({"params": []})


def test_it_gives_a_closure_one_call():
    model = deep()
    calls = []
    assert Together(both(model)).step(lambda: calls.append(1) or 3.0) == 3.0
    assert calls == [1]


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(5, 8))
        self.tokens = nn.Embedding(9, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16)
        self.head = nn.Linear(8, 9)
        self.head.weight = self.tokens.weight


HIDDEN = {
    "block.self_attn.in_proj_weight",
    "block.self_attn.out_proj.weight",
    "block.linear1.weight",
    "block.linear2.weight",
}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (deep(), {"2.weight"}),
        (Transformer(), HIDDEN),
        (nn.Sequential(nn.Linear(4, 4), nn.Embedding(9, 4), *deep()[2:]), {"2.weight"}),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(4, 4), nn.Linear(4, 2)), {"1.weight"}),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)), set()),
    ],
)
def test_which_weights_are_hidden(model, expected):
    assert set(hidden_weights(model)) == expected


@needs_muon
def test_muon_gets_the_hidden_weights_and_the_learners_decay(data):
    learn = Learner(data, deep(), opt_func=partial(muon_split, lr=0.05), wd=0.2)
    rest, muon = learn.opt.members
    assert muon.param_groups[0]["params"] == [learn.model[2].weight]
    assert [group["weight_decay"] for group in learn.opt.param_groups] == [0.2, 0.0, 0.2]
    assert optimizers.current(learn.opt, "lr") == [3e-4, 0.05]
    assert rest.defaults["fused"]


@needs_muon
def test_muon_takes_what_it_is_told():
    model = deep()
    rest, muon = muon_split(model, wd=None, hidden=lambda name, _: name == "3.weight", ns_steps=3)
    assert muon.param_groups[0]["params"] == [model[3].weight]
    assert [muon.defaults["ns_steps"], muon.defaults["weight_decay"]] == [3, 0.1]
    assert [group["weight_decay"] for group in rest.param_groups] == [0.01, 0.0]


@needs_muon
def test_muon_needs_a_hidden_weight():
    with pytest.raises(ValueError, match="no hidden weight matrix for Muon"):
        muon_split(nn.Linear(2, 2))


def test_an_older_torch_has_no_muon(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ImportError, match=r"torch>=2\.9"):
        muon_split(deep())
