"""A program of torch.export: what the model says, for any batch, without a trace or a pickle."""

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import everything, mlp, plain, same
from torch import nn

from onecycle import Learner, load_model


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the payload ran')",))


@pytest.fixture(scope="module")
def program(tmp_path_factory, digit_tensors):
    """A learner, whether it is as it was before, and the file that it exported."""
    x, y = digit_tensors
    torch.manual_seed(0)
    learn = Learner(([(x[:60], y[:60])], [(x[60:90], y[60:90])]), mlp())
    with learn.no_logging():
        learn.fit(1)
    before = everything(learn)
    path = learn.export(tmp_path_factory.mktemp("exported") / "new" / "model.pt2")
    return learn, same(before, everything(learn)), path


def test_a_program_is_the_model_for_batches_of_any_size(program, digit_tensors):
    learn, untouched, path = program
    assert untouched
    loaded = load_model(path)
    for n in (1, 2, 50):
        x = digit_tensors[0][:n]
        raw = learn.get_preds([x], activate=False)[0]
        assert torch.equal(loaded(x), raw)
        assert not loaded(x).requires_grad


def test_no_data_are_in_a_program(program):
    with zipfile.ZipFile(program[2]) as archive:
        sizes = {n: archive.getinfo(n).file_size for n in archive.namelist()}
    assert not any("inputs" in name and size for name, size in sizes.items())


@pytest.mark.parametrize("how", ["member", "config", "library", "twice", "cut"])
def test_a_program_with_pickles_is_refused(program, tmp_path, how):
    file = io.BytesIO(program[2].read_bytes())
    bad = tmp_path / "bad.pt2"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if how == "member" and name.endswith(".pt"):
                content = pickle.dumps(Payload())
            if how == "config" and name.endswith("weights_config.json"):
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
            new.writestr(name, content)
        if how == "library":
            new.writestr("archive/data/aotinductor/model/model.so", b"")
        if how == "twice":
            with pytest.warns(UserWarning, match="Duplicate name"):
                new.writestr(old.namelist()[0], b"")
    if how == "cut":
        bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read as a program"):
        load_model(bad)


def test_wrong_files(learn, program, tmp_path):
    with pytest.raises(ValueError, match="path: the suffix must be one of"):
        learn.export(tmp_path / "model.bin")
    with pytest.raises(ValueError, match="is a program, which no model can take; load_model"):
        learn.load(program[2])
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_model(tmp_path / "none.pt2")
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        load_model(tmp_path / "model.pth")
    assert not list(Path(tmp_path).iterdir())


def test_a_model_that_cannot_be_followed(data, tmp_path):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = plain()

        def forward(self, x):
            return self.net(x) * (2.0 if x.sum().item() > 0 else 1.0)

    with pytest.raises(ValueError, match=r"model: torch\.export cannot make a program of it"):
        Learner(data, Reads()).export(tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_weights_of_a_saved_file_are_loaded_into_a_model(learn, tmp_path):
    path = learn.save(tmp_path / "model.pth")
    model = mlp()
    nn.init.zeros_(model[0].weight)
    assert same(load_model(path, model).state_dict(), learn.model.state_dict())
    with pytest.raises(ValueError, match="is of another model"):
        load_model(path, plain())
