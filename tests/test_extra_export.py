"""Files for other programs: safetensors, ONNX, and programs of models of every kind."""

import numpy as np
import pytest
import torch
from helpers import everything, mlp, plain, same, weights
from torch import nn

from onecycle import EMA, DataLoaders, Interpretation, Learner, load_model
from onecycle.models import simple_cnn

pytestmark = pytest.mark.extra


@pytest.fixture
def images(digit_tensors):
    x, y = digit_tensors
    x = x[:120].reshape(-1, 1, 8, 8)
    return DataLoaders.from_tensors(x, y[:120], valid=(x[:40], y[:40]), batch_size=30)


def averaged(images):
    learn = Learner(images, simple_cnn((1, 4, 10)))
    learn.fit_one_cycle(1, 0.01, callbacks=[EMA(at_end=True)])
    return learn


def frozen(images):
    learn = Learner(
        images, nn.Sequential(*simple_cnn((1, 4, 10))), splitter=lambda m: [m[0], m[2:]]
    )
    learn.freeze()
    return learn


MADE = {
    "plain": lambda images: Learner(images, simple_cnn((1, 4, 10))),
    "ema": averaged,
    "frozen": frozen,
    "compiled": lambda images: Learner(images, simple_cnn((1, 4, 10)), compile=True),
    "wrapped": lambda images: Learner(images, torch.compile(simple_cnn((1, 4, 10)))),
    "channels_last": lambda images: Learner(images, simple_cnn((1, 4, 10)), channels_last=True),
    "dropout": lambda images: Learner(images, nn.Sequential(nn.Flatten(), mlp())),
}


def raw_of(learn):
    """What the bare model says in evaluation mode."""
    x = learn.data.valid.tensors[0]
    if learn.network.compiled or hasattr(learn.model, "_orig_mod"):
        model = getattr(learn.model, "_orig_mod", learn.model).eval()
        with torch.no_grad():
            return x, model(x)
    return x, learn.get_preds(activate=False)[0]


@pytest.mark.parametrize("kind", MADE)
def test_a_program_is_the_bare_model(images, tmp_path, kind):
    learn = MADE[kind](images)
    before = everything(learn)
    loaded = load_model(learn.export(tmp_path / "model.pt2"))
    assert same(before, everything(learn))
    x, raw = raw_of(learn)
    torch.testing.assert_close(loaded(x), raw)


@pytest.mark.parametrize("kind", MADE)
def test_onnx_says_the_same(images, tmp_path, kind):
    reference = pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")
    learn = MADE[kind](images)
    before = everything(learn)
    path = learn.export(tmp_path / "model.onnx")
    assert same(before, everything(learn))
    x, raw = raw_of(learn)
    session = reference.ReferenceEvaluator(str(path))
    for n in (1, 40):
        made = session.run(None, {session.input_names[0]: x[:n].numpy()})[0]
        np.testing.assert_allclose(made, raw[:n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MADE)
def test_safetensors_are_loaded_again(images, tmp_path, kind):
    safe = pytest.importorskip("safetensors")
    learn = MADE[kind](images)
    before = everything(learn)
    path = learn.export(tmp_path / "model.safetensors")
    assert same(before, everything(learn))
    other = MADE[kind](images)
    for parameter in other.model.parameters():
        nn.init.zeros_(parameter)
    assert other.load(path) is other
    assert same(other.model.state_dict(), learn.model.state_dict())
    with safe.safe_open(path, "pt") as file:
        assert file.metadata()["written_by"] == "onecycle"
        assert not any(name.startswith("_orig_mod") for name in file.keys())  # noqa: SIM118


def test_tied_weights(data, tmp_path):
    pytest.importorskip("safetensors")

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    learn = Learner(data, Tied())
    path = learn.export(tmp_path / "model.safetensors")
    assert same(load_model(path, Tied()).state_dict(), learn.model.state_dict())


def test_a_file_that_does_not_fit_changes_nothing(data, tmp_path):
    pytest.importorskip("safetensors")
    path = Learner(data, mlp()).export(tmp_path / "model.safetensors")
    learn = Learner(data, plain())
    before = weights(learn)
    with pytest.raises(ValueError, match="is of another model: 'weight' is missing in the file"):
        learn.load(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        learn.load(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        learn.load(tmp_path / "none.safetensors")
    assert same(weights(learn), before)


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = plain()

    def forward(self, x, mask, scale):
        return self.net(x * mask) * scale


@pytest.mark.parametrize("form", ["list", "dict"])
def test_several_inputs(digit_tensors, tmp_path, form):
    x, y = (part[:30] for part in digit_tensors)
    given = {"x": x, "mask": (x > 0).float(), "scale": torch.tensor(2.0)}
    batch = {**given, "y": y} if form == "dict" else (*given.values(), y)
    learn = Learner(([batch], None), Several())
    loaded = load_model(learn.export(tmp_path / "model.pt2"))
    few = {name: value[:5] if value.ndim else value for name, value in given.items()}
    made = loaded(**few) if form == "dict" else loaded(*few.values())
    torch.testing.assert_close(made, learn.model(**few).detach())


def test_the_figures_of_each_class_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics")
    torch.manual_seed(0)
    actual, preds = torch.randint(0, 5, (200,)), torch.rand(200, 6)
    report = sklearn.classification_report(
        actual, preds.argmax(1), labels=range(6), output_dict=True, zero_division=0
    )
    table = Interpretation(preds, actual).per_class()
    names = {"precision": "precision", "recall": "recall", "f1": "f1-score", "support": "support"}
    for row in table:
        there = report.get(row["class"], report.get("micro avg"))
        if row["class"] == "accuracy":
            assert row["f1"] == pytest.approx((actual == preds.argmax(1)).double().mean().item())
        else:
            assert [row[k] for k in names] == pytest.approx([there[v] for v in names.values()])
