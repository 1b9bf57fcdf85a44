"""Layer groups: splitting, freezing, discriminative rates, batch norm, fine-tuning."""

import copy
from functools import partial

import pytest
import torch
from helpers import everything, mlp, same, sgd, split_in_two, weights
from torch import nn

from onecycle import BnFreeze, Callback, Learner
from onecycle.optimizers import current, spread


def in_two(model):
    return [model[:3], model[4]]


@pytest.fixture
def two(data):
    """A learner with two layer groups: linear, batch norm | linear."""
    return Learner(data, mlp(), splitter=in_two)


def trained(learn):
    return {name for name, p in learn.model.named_parameters() if p.requires_grad}


ALL = {"0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"}
HEAD = {"4.weight", "4.bias"}
NORM = {"1.weight", "1.bias"}


@pytest.mark.parametrize("splitter", [in_two, split_in_two, lambda m: [[m[0], m[1]], m[4]]])
def test_a_splitter_gives_modules_or_parameters(data, splitter):
    learn = Learner(data, mlp(), splitter=splitter)
    learn.fit(1, [0.1, 0.2])
    assert learn.recorder.lrs[0] == 0.2


def test_a_splitter_may_be_a_list_of_modules(data):
    model = mlp()
    learn = Learner(data, model, splitter=[model[:2], model[2:]])
    assert len(current(learn.opt, "lr")) == 2


@pytest.mark.parametrize(
    ("splitter", "error", "message"),
    [
        (lambda m: [m[0]], ValueError, "'1.weight' is missing"),
        (lambda m: [m, m[4]], ValueError, "in two places"),
        (lambda m: [m, m[2]], ValueError, "one is empty"),
        (lambda m: [m, nn.Linear(2, 2)], ValueError, "one is of another"),
        (lambda m: [m, "head"], TypeError, "modules or lists of parameters, got 'head'"),
        (lambda m: None, TypeError, "must give a list.* got None"),
        (mlp(), TypeError, "must give a list"),
        (lambda m: [[m[0], 3]], TypeError, "modules or lists of parameters, got 3"),
    ],
)
def test_a_wrong_splitter_is_refused(data, splitter, error, message):
    with pytest.raises(error, match=f"splitter.*{message}"):
        Learner(data, mlp(), splitter=splitter)


def test_freeze_trains_the_last_group_and_all_batch_norm(two):
    two.freeze()
    assert trained(two) == HEAD | NORM
    two.unfreeze()
    assert trained(two) == ALL


def test_freeze_without_batch_norm(data):
    learn = Learner(data, mlp(), splitter=in_two, train_bn=False)
    learn.freeze()
    assert trained(learn) == HEAD


@pytest.mark.parametrize(("n", "expected"), [(0, ALL), (1, HEAD), (-1, HEAD), (-2, ALL)])
def test_freeze_to_counts_from_both_ends(data, n, expected):
    learn = Learner(data, mlp(), splitter=in_two, train_bn=False)
    learn.freeze_to(n)
    assert trained(learn) == expected


@pytest.mark.parametrize("n", [2, 5])
def test_freeze_to_refuses_a_group_that_is_not_there(two, n):
    with pytest.raises(ValueError, match=r"freeze_to\(\d\): the model has 2 layer groups"):
        two.freeze_to(n)
    assert trained(two) == ALL


def test_freezing_one_group_is_an_error_that_explains(learn):
    for action in (learn.freeze, lambda: learn.fine_tune(1)):
        with pytest.raises(ValueError, match="one of each part"):
            action()
    learn.unfreeze()
    assert trained(learn) == ALL


def test_frozen_weights_do_not_move_and_keep_their_optimizer_state(two):
    two.fit(1)
    two.freeze()
    before = copy.deepcopy(two.opt.state_dict()["state"]), two.model[0].weight.clone()
    head = two.model[4].weight.clone()
    two.fit(2, 0.01)
    after = two.opt.state_dict()["state"]
    frozen = [i for i, state in before[0].items() if same(state, after[i])]
    assert len(frozen) == 2
    assert torch.equal(before[1], two.model[0].weight)
    assert not torch.equal(head, two.model[4].weight)


def test_unfreezing_goes_on_with_the_state_there_was(data):
    one, other = (Learner(data, mlp(), splitter=in_two) for _ in range(2))
    for learn in (one, other):
        torch.manual_seed(0)
        learn.fit(1)
    one.freeze()
    one.unfreeze()
    for learn in (one, other):
        torch.manual_seed(0)
        learn.fit(1)
    assert same(weights(one), weights(other))


@pytest.mark.parametrize("train_bn", [True, False])
def test_batch_norm_of_a_frozen_group_follows_the_choice(data, train_bn):
    learn = Learner(data, mlp(), splitter=in_two, train_bn=train_bn)
    learn.freeze()
    before = copy.deepcopy(learn.model[1].state_dict())
    learn.fit(1, 0.01)
    assert same(before, learn.model[1].state_dict()) is not train_bn
    assert learn.model[1].training


def test_batch_norm_of_a_trained_group_always_follows_the_batches(data):
    learn = Learner(data, mlp(), splitter=in_two, train_bn=False)
    learn.fit(1)
    assert learn.model[1].num_batches_tracked == 10


def test_a_number_keeps_the_ratios_that_the_groups_have():
    assert spread("lr", 1.0, 3, [0.01, 0.1, 1.0]) == [0.01, 0.1, 1.0]
    assert spread("lr", slice(1e-4, 1e-2), 3, [0.5, 0.5, 1.0]) == [1e-4, 1e-3, 1e-2]


def groups_of(model):
    return [
        {"params": model[:3].parameters(), "lr": 0.01},
        {"params": model[4].parameters(), "lr": 0.1},
    ]


class Rates(Callback):
    """Every group's learning rate at every step."""

    def __init__(self):
        self.rates = []

    def on_step_end(self, learn):
        self.rates.append(current(learn.opt, "lr"))


@pytest.mark.parametrize(
    "train",
    [
        lambda learn: learn.fit(1, 0.5),
        lambda learn: learn.fit_one_cycle(1, 0.5),
        lambda learn: learn.fit_wsd(1, 0.5),
    ],
)
def test_a_fit_at_a_number_keeps_the_optimizer_s_ratios(data, train):
    model, rates = mlp(), Rates()
    learn = Learner(data, model, opt_func=sgd(groups_of(model)), callbacks=[rates])
    train(learn)
    assert all(first == pytest.approx(last / 10) for first, last in rates.rates)
    assert max(last for _, last in rates.rates) == 0.5


def test_the_sweep_keeps_the_ratios_too(data):
    model, seen = mlp(), []
    learn = Learner(data, model, opt_func=sgd(groups_of(model)))
    step = learn.opt.step
    learn.opt.step = lambda *a, **k: (seen.append(current(learn.opt, "lr")), step(*a, **k))[1]
    learn.lr_find(num_it=20)
    assert len(seen) > 10
    assert all(first == pytest.approx(last / 10) for first, last in seen)


def test_weight_decay_spares_norms_and_biases(two):
    decayed = {
        id(p) for group in two.opt.param_groups if group["weight_decay"] for p in group["params"]
    }
    names = {name for name, p in two.model.named_parameters() if id(p) in decayed}
    assert names == {"0.weight", "4.weight"}


class Phases(Callback):
    """What trains, and the peak of each group, in every fit."""

    def __init__(self):
        self.phases = []

    def on_train_begin(self, learn):
        self.phases.append([trained(learn), learn.n_epochs, [0.0, 0.0]])

    def on_batch_begin(self, learn):
        rates = current(learn.opt, "lr")
        self.phases[-1][2] = [max(pair) for pair in zip(self.phases[-1][2], rates, strict=True)]


def test_fine_tune_is_a_frozen_cycle_and_an_unfrozen_one(data):
    phases = Phases()
    learn = Learner(data, mlp(), splitter=in_two, train_bn=False)
    learn.fine_tune(3, 0.02, freeze_epochs=2, callbacks=phases)
    (first, n, frozen), (second, m, whole) = phases.phases
    assert (first, n, second, m) == (HEAD, 2, ALL, 3)
    assert frozen == pytest.approx([0.002, 0.02])
    assert whole == pytest.approx([0.0001, 0.01])
    assert learn.recorder.lrs[20] == pytest.approx(0.01 / 5)
    assert learn.recorder.borders == [2]


def test_fine_tune_without_a_frozen_part(two):
    two.fine_tune(1, freeze_epochs=0)
    assert len(two.recorder.history) == 1


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"epochs": 0}, "epochs"),
        ({"freeze_epochs": -1}, "freeze_epochs"),
        ({"base_lr": 0}, "base_lr"),
        ({"lr_mult": 0.5}, "lr_mult"),
        ({"pct_start": 2}, "pct_start"),
        ({"wd": -1}, "wd"),
    ],
)
def test_fine_tune_refuses_a_wrong_argument_before_it_trains(two, arguments, name):
    before = everything(two), trained(two)
    with pytest.raises(ValueError, match=name):
        two.fine_tune(**{"epochs": 1} | arguments)
    assert same(everything(two), before[0])
    assert trained(two) == before[1]


def test_an_interrupted_fine_tune_leaves_nothing_frozen(two):
    class Interrupted(Callback):
        def on_batch_end(self, learn):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        two.fine_tune(1, callbacks=Interrupted)
    assert trained(two) == ALL


def test_batch_norm_without_parameters_goes_with_its_group(data):
    model = mlp()
    model[1] = nn.BatchNorm1d(16, affine=False)
    model = nn.Sequential(nn.Sequential(*model[:3]), *model[3:])
    learn = Learner(data, model, splitter=[model[0], model[2]], train_bn=False)
    learn.fit(1)
    assert model[0][1].num_batches_tracked == 10
    learn.freeze()
    learn.fit(1)
    assert model[0][1].num_batches_tracked == 10


def test_whole_numbers_among_the_parameters_are_left_alone(data):
    model = mlp()
    model[4].register_parameter("codes", nn.Parameter(torch.ones(2).char(), requires_grad=False))
    learn = Learner(data, model, opt_func=sgd, splitter=in_two)
    learn.freeze()
    learn.unfreeze()
    assert trained(learn) == ALL


def test_each_part_of_fine_tune_has_its_own_peak(two):
    two.fine_tune(4, 0.02, freeze_epochs=10, pct_start=0.5)
    lrs = two.recorder.lrs
    assert lrs[:100].argmax() == 98
    assert lrs[100:].argmax() == 20


def test_fine_tune_refuses_what_lr_find_could_not_tell(two):
    from onecycle import LRFind

    with pytest.raises(ValueError, match="base_lr: lr_find gave no learning rate"):
        two.fine_tune(1, LRFind([0.1], [2.3]))


@pytest.mark.parametrize("lr", [slice(1e-4, 1e-2), [1e-4, 1e-2], None])
def test_fine_tune_takes_one_number(two, lr):
    with pytest.raises(TypeError, match="base_lr must be a number"):
        two.fine_tune(1, lr)


@pytest.mark.parametrize("name", ["train_bn", "live_plot"])
def test_a_flag_is_true_or_false(data, name):
    with pytest.raises(TypeError, match=f"{name} must be True or False"):
        Learner(data, mlp(), **{name: "no"})


def test_a_head_that_was_replaced_later_is_told_before_training(two):
    two.model[4] = nn.Linear(16, 10)
    before = copy.deepcopy(two.model.state_dict())
    with pytest.raises(ValueError, match=r"'4.weight' is trainable, but.*make a new Learner"):
        two.fit(1)
    assert same(before, two.model.state_dict())


def test_a_user_s_optimizer_may_hold_a_part_of_the_model(data):
    model = mlp()
    Learner(data, model, opt_func=sgd(model[4].parameters(), lr=0.1)).fit(1)


def test_a_learner_tells_what_it_is(two):
    two.fit(1)
    assert repr(two) == "Learner(Sequential of 1,242 parameters, AdamW, 1 epochs trained)"


@pytest.mark.parametrize("options", [{}, {"dampening": 0.5}, {"nesterov": True}])
def test_momentum_of_what_was_frozen_begins_when_it_is_trained(data, options):
    """Torch's fused SGD fails where a part of a group has a momentum already."""
    runs = []
    for fused in ({}, {"fused": False}):
        torch.manual_seed(0)
        opt = partial(torch.optim.SGD, momentum=0.9, **options, **fused)
        learn = Learner(data, mlp(), opt_func=opt, splitter=split_in_two)
        learn.freeze()
        learn.fit(1, 0.01)
        learn.unfreeze()
        learn.fit(1, 0.01)
        runs.append(learn.recorder.losses)
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)


@pytest.mark.parametrize(("layers", "counted"), [("frozen", [0, 20]), ("all", [0, 0])])
def test_bn_freeze_holds_batch_norm_for_a_fit(data, layers, counted):
    model = mlp()
    model[3] = nn.BatchNorm1d(16)
    model[1].requires_grad_(False)
    learn = Learner(data, model)
    modes = []

    class Modes(Callback):
        def on_batch_begin(self, learn):
            modes.append([model[1].training, model[3].training, model[0].training])

    learn.fit(2, callbacks=[BnFreeze(layers), Modes])
    assert modes == [[False, layers == "frozen", True]] * 20
    assert [int(model[i].num_batches_tracked) for i in (1, 3)] == counted
    assert all(module.training for module in model.modules())
    assert not torch.equal(model[3].weight, torch.ones(16))
    assert torch.equal(model[1].weight, torch.ones(16))


def test_bn_freeze_of_frozen_groups_is_train_bn(data):
    runs = []
    for train_bn, callbacks in ((False, []), (False, [BnFreeze])):
        learn = Learner(data, mlp(), splitter=in_two, train_bn=train_bn, callbacks=callbacks)
        learn.freeze()
        torch.manual_seed(0)
        learn.fit(1)
        runs.append(learn.model.state_dict())
    assert same(*runs)


def test_bn_freeze_takes_one_of_two_words():
    with pytest.raises(ValueError, match="layers must be one of 'frozen', 'all'"):
        BnFreeze("none")
