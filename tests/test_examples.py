"""The examples run, in small, and say in numbers what came of it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onecycle import launch

FOLDER = Path(__file__).parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"{name}_example", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("char_lm", "bits for a character: "),
        ("finetune", "fine_tune, rates by group "),
        ("tune_optuna", "by habit  accuracy on the test part"),
    ],
)
def test_an_example_runs_in_small(name, says, capsys):
    load(name).main(["--smoke"])
    assert says in capsys.readouterr().out


def test_ddp_is_the_same_run_by_one_process_and_by_two(tmp_path, capfd):
    main = load("ddp").main
    options = ["--smoke", "--checkpoint"]
    launch(main, 2, [*options, str(tmp_path / "two.pt")])
    two = capfd.readouterr().out
    main([*options, str(tmp_path / "one.pt")])
    one = capfd.readouterr().out
    assert "2 x 64 images in each of 12 steps" in two
    assert one.split("accuracy")[-1] == two.split("accuracy")[-1]


@pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="this torch shards on cuda only"
)
def test_one_process_goes_on_with_the_fsdp_run_of_two(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    main = load("fsdp").main
    options = ["--smoke", "--half", "--checkpoint", str(tmp_path / "run.pt")]
    launch(main, 2, [*options, "--stop-at", "6"])
    assert "saved: learn.resume" in capfd.readouterr().out
    main(options)
    done = capfd.readouterr().out
    assert "resumed from" in done
    assert "after 15 steps" in done


@pytest.mark.extra
@pytest.mark.parametrize(
    ("name", "needs", "says"),
    [
        ("tabular", "sklearn", "gradient boosting      accuracy "),
        ("tune_ray", "ray.tune", "the best, loaded from its checkpoint: {'valid_loss': "),
    ],
)
def test_an_example_of_an_extra_runs_in_small(name, needs, says):
    pytest.importorskip(needs)
    command = [sys.executable, FOLDER / f"{name}.py", "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert says in done.stdout


def test_the_texts_to_write_like_have_what_is_shown(capsys):
    char_lm = load("char_lm")
    text = char_lm.torch.tensor([0, 1] * 50)
    single, pairs = char_lm.bits_by_counting(text, text, 2)
    assert single == pytest.approx(1.0, abs=0.01)
    assert pairs == pytest.approx(0.0, abs=0.02)
