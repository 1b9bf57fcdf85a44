"""save and load: whole files, the same model back, nothing run, clear refusals."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import everything, mlp, plain, same, sgd, split_in_two, weights
from torch import nn

from onecycle import (
    Learner,
)
from onecycle.files import as_path


def test_save_and_load_give_back_model_and_optimizer(data, tmp_path):
    learn = Learner(data, mlp())
    learn.fit(1)
    path = learn.save(tmp_path / "folder" / "model.pt")
    other = Learner(data, mlp()).load(path)
    assert same(weights(learn), weights(other))
    assert [file.name for file in path.parent.iterdir()] == ["model.pt"]


def test_load_refuses_another_model_and_changes_nothing(data, tmp_path):
    path = Learner(data, plain()).save(tmp_path / "a.pt")
    learn = Learner(data, mlp())
    before = everything(learn)
    with pytest.raises(ValueError, match=r"another model: '0.weight' is missing"):
        learn.load(path)
    assert same(before, everything(learn))


def test_load_refuses_another_optimizer_unless_told(data, tmp_path):
    path = Learner(data, plain(2), opt_func=sgd).save(tmp_path / "a.pt")
    learn = Learner(data, plain())
    with pytest.raises(ValueError, match=r"optimizer SGD.*with_opt=False"):
        learn.load(path)
    learn.load(path, with_opt=False)
    assert torch.equal(learn.model.weight, plain(2).weight)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_load_refuses_a_damaged_file(learn, tmp_path, content):
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad.pt' cannot be read"):
        learn.load(tmp_path / "bad.pt")


def test_load_names_a_missing_file(learn):
    with pytest.raises(FileNotFoundError, match=r"there is no file 'nowhere.pt'"):
        learn.load("nowhere.pt")


def test_a_failed_save_keeps_the_file_that_was_there(learn, tmp_path):
    path = learn.save(tmp_path / "a.pt")
    before = path.read_bytes()
    learn.opt.param_groups[0]["bad"] = lambda: None
    with pytest.raises(TypeError, match=r"optimizer\['state'\].*\['bad'\] is a function"):
        learn.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the payload ran')",))


def test_loading_runs_no_code(learn, tmp_path):
    torch.save({"format": 1, "model": Payload(), "optimizer": {}}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil.pt' cannot be read"):
        learn.load(tmp_path / "evil.pt")


@pytest.mark.parametrize("state", [{}, {"format": 1}, {"model": {}, "optimizer": {}}, [1]])
def test_a_foreign_file_is_refused(learn, tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="not a file that"):
        learn.load(tmp_path / "a.pt")


def test_a_later_format_is_refused(learn, tmp_path):
    torch.save({"format": 3, "model": {}, "optimizer": {}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="has the format 3, this version reads up to 2"):
        learn.load(tmp_path / "a.pt")


def test_rates_of_numpy_and_extra_state_can_be_saved_and_loaded(data, tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"seen": 3}

        def set_extra_state(self, state):
            self.seen = state["seen"]

    one, two = (
        Learner(data, Extra(64, 10), opt_func=partial(sgd, lr=np.float64(0.1))) for _ in range(2)
    )
    two.load(one.save(tmp_path / "a.pt"))
    assert (two.model.seen, two.opt.param_groups[0]["lr"]) == (3, 0.1)


def test_other_parameter_groups_are_refused_with_the_path(data, tmp_path):
    path = Learner(data, mlp(), splitter=split_in_two).save(tmp_path / "a.pt")
    learn = Learner(data, mlp())
    before = everything(learn)
    with pytest.raises(ValueError, match=r"a.pt' is of other parameter groups"):
        learn.load(path)
    assert same(before, everything(learn))


def test_a_saved_file_has_the_mode_of_any_file(learn, tmp_path):
    (tmp_path / "plain").touch()
    path = learn.save(tmp_path / "a.pt")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_name_that_ends_as_a_folder_is_refused():
    with pytest.raises(IsADirectoryError, match="path: 'runs/' is a folder"):
        as_path("runs/")
