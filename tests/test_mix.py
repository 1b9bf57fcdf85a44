"""MixUp and CutMix: what is mixed, by which loss it is learned, and what stays as it is."""

import pytest
import torch
from helpers import plain, same
from torch import nn
from torch.nn import functional

from onecycle import Callback, CutMix, DataLoaders, Learner, MixUp
from onecycle.callbacks.mix import _cut

MIXES = [MixUp, CutMix]


class Watch(Callback):
    """What a mix before it in the list did to each batch."""

    def __init__(self, mix):
        self.mix, self.batches, self.preds, self.losses, self.pairs = mix, [], [], [], []

    def on_batch_begin(self, learn):
        self.batches.append(learn.batch)
        self.pairs.append((self.mix._share, learn.batch[-1], self.mix._partners))

    def on_backward_begin(self, learn):
        self.preds.append(learn.pred.detach())
        self.losses.append(learn.loss.detach())


@pytest.fixture
def images(digit_tensors):
    x, y = digit_tensors
    x = x.view(-1, 1, 8, 8)
    return DataLoaders.from_tensors(x[:95], y[:95], valid=(x[100:200], y[100:200]), batch_size=30)


def model():
    return nn.Sequential(nn.Flatten(), plain())


def watched(data, mix, loss_func=None, **options):
    watch = Watch(mix)
    learn = Learner(data, model(), loss_func, callbacks=[mix, watch], device="cpu", **options)
    learn.fit(1, 0.01)
    return watch


def soft(pairs, smoothing=0.0):
    """Probabilities of classes that are mixed as the inputs are."""
    for share, own, other in pairs:
        mixed = share * functional.one_hot(own, 10) + (1 - share) * functional.one_hot(other, 10)
        yield (1 - smoothing) * mixed + smoothing / 10


@pytest.mark.parametrize("kind", MIXES)
@pytest.mark.parametrize("smoothing", [None, 0.0, 0.1])
def test_of_classes_the_loss_is_that_of_mixed_probabilities(images, kind, smoothing):
    loss_func = None if smoothing is None else nn.CrossEntropyLoss(label_smoothing=smoothing)
    watch = watched(images, kind(1.0), loss_func)
    expected = map(functional.cross_entropy, watch.preds, soft(watch.pairs, smoothing or 0.0))
    torch.testing.assert_close(watch.losses, list(expected))
    assert [len(batch[1]) for batch in watch.batches] == [30, 30, 30, 5]


@pytest.mark.parametrize(
    "loss_func",
    [
        nn.CrossEntropyLoss(weight=torch.arange(1.0, 11.0), ignore_index=3),
        lambda pred, y: functional.multi_margin_loss(pred, y).sqrt(),
    ],
)
def test_any_loss_is_mixed_of_both(images, loss_func):
    watch = watched(images, MixUp(1.0), loss_func)
    for pred, loss, (share, own, other) in zip(watch.preds, watch.losses, watch.pairs, strict=True):
        mixed = share * loss_func(pred, own) + (1 - share) * loss_func(pred, other)
        torch.testing.assert_close(loss, mixed)


@pytest.mark.parametrize("kind", MIXES)
def test_floats_are_mixed_as_their_inputs(kind):
    """Images of one brightness: how bright a mixed one is says how much of each is in it."""
    y = torch.arange(90.0)
    x = y.view(-1, 1, 1, 1).expand(90, 1, 10, 10).clone()
    data = DataLoaders.from_tensors(x, y.view(-1, 1), batch_size=30)
    mix = kind(1.0)
    watch = Watch(mix)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(100, 1))
    learn = Learner(data, net, callbacks=[mix, watch])
    learn.fit(1, 1e-6)
    for mixed, target in watch.batches:
        torch.testing.assert_close(mixed.mean((1, 2, 3)), target[:, 0])
        assert not torch.equal(target, target.round())
    assert torch.equal(x[:, 0, 0, 0], y)


def test_a_box_lies_around_any_point():
    torch.manual_seed(0)
    found = {(cut.start, cut.stop) for cut in (_cut(10, 0.5) for _ in range(100))}
    assert found == {(max(0, i - 2), min(10, i + 2)) for i in range(10)}


@pytest.mark.parametrize("like", [lambda x: (9 * x).long(), lambda x: 2 * x])
def test_a_target_for_each_pixel_gets_the_box_of_its_image(like):
    torch.manual_seed(0)
    x = torch.rand(30, 1, 8, 8)
    data = DataLoaders.from_tensors(x, like(x[:, 0]), batch_size=15)
    watch = Watch(CutMix())
    net = nn.Conv2d(1, 9, 1)
    learn = Learner(data, net, lambda pred, y: (pred[:, 0] - y).square().mean())
    learn.fit(1, callbacks=[watch.mix, watch])
    for mixed, target in watch.batches:
        assert torch.equal(target, like(mixed[:, 0]))
    assert not any(torch.equal(a, b) for a, (b, _) in zip(x.split(15), watch.batches, strict=True))


@pytest.mark.parametrize("kind", MIXES)
def test_the_data_and_validation_are_untouched(images, kind):
    before = [t.clone() for t in (*images.train.tensors, *images.valid.tensors)]
    given = [tuple(t.clone() for t in batch) for batch in images.train]
    loss_func = nn.CrossEntropyLoss(label_smoothing=0.1)
    learn = Learner((given, images.valid), model(), loss_func, callbacks=[kind(1.0)])
    kept = [tuple(t.clone() for t in batch) for batch in given]
    learn.fit(2, 0.01)
    assert same(given, kept)
    assert same([*images.train.tensors, *images.valid.tensors], before)
    assert learn.validate() == {"valid_loss": learn.recorder.history[-1]["valid_loss"]}
    torch.testing.assert_close(learn.get_preds()[0].sum(1), torch.ones(100))


def test_shares_are_those_of_a_beta_distribution():
    torch.manual_seed(0)
    for alpha, variance in [(0.4, 1 / 7.2), (1.0, 1 / 12)]:  # 1 / (4 (2 alpha + 1))
        drawn = torch.tensor([MixUp(alpha).mixer([])[0] for _ in range(400)])
        assert drawn.mean() == pytest.approx(0.5, abs=0.05)
        assert drawn.var() == pytest.approx(variance, abs=0.02)


def test_of_mappings_and_several_inputs_everything_is_mixed(digit_tensors):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = plain()

        def forward(self, a, b):
            assert torch.equal(2 * a, b)
            return self.net(a) + self.net(b)

    x, y = digit_tensors[0][:60], digit_tensors[1][:60]
    for batch in ({"a": x, "label": y, "b": 2 * x}, (x, 2 * x, y), [x, 2 * x, y]):
        Learner(([batch], None), Two(), callbacks=[MixUp()]).fit(1)


@pytest.mark.parametrize(
    "options", [{"precision": "bf16"}, {"precision": "fp16"}, {"accumulate": 2}]
)
def test_in_half_precision_the_second_loss_is_made_as_the_first(images, options):
    watch = watched(images, MixUp(1.0), **options)
    preds = (pred.float() for pred in watch.preds)
    expected = list(map(functional.cross_entropy, preds, soft(watch.pairs)))
    torch.testing.assert_close(watch.losses, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("given", [[MixUp(), CutMix()], [MixUp(), MixUp()]])
def test_two_of_them_are_refused(images, given):
    with pytest.raises(ValueError, match=r"callbacks: MixUp and \w+ would mix each batch twice"):
        Learner(images, model(), callbacks=given).fit(1)


@pytest.mark.parametrize(
    ("mix", "inputs", "error", "text"),
    [
        (MixUp(), torch.ones(4, 64).byte(), TypeError, "MixUp mixes inputs of floats.*uint8"),
        (MixUp(), [torch.ones(4, 64), torch.ones(3)], ValueError, "one row for each sample"),
        (CutMix(), torch.ones(4, 64), ValueError, r"CutMix needs images .*\(4, 64\)"),
    ],
)
def test_what_cannot_be_mixed_is_told(mix, inputs, error, text):
    batch = (*inputs, torch.ones(4).long()) if isinstance(inputs, list) else (inputs, torch.ones(4))
    learn = Learner(([batch], None), plain(), functional.cross_entropy, callbacks=[mix])
    with pytest.raises(error, match=text):
        learn.fit(1)


@pytest.mark.parametrize("kind", MIXES)
@pytest.mark.parametrize("alpha", [0, -1.0, float("inf")])
def test_alpha_is_above_0(kind, alpha):
    with pytest.raises(ValueError, match="alpha"):
        kind(alpha)
