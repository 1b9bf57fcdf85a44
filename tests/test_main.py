"""`python -m onecycle` as a user runs it."""

import os
import subprocess
import sys

import pytest

from onecycle import __main__ as demo
from onecycle.data import builtin


def run(*options, cwd):
    command = [sys.executable, "-m", "onecycle", *options]
    env = {name: value for name, value in os.environ.items() if name != "ONECYCLE_PROGRESS"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)


def test_the_demonstration_prints_two_tables_and_writes_pictures(tmp_path):
    done = run("--epochs", "2", "--out", "pictures", "--device", "cpu", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "lr_find: LRFind(" in done.stdout
    lines = done.stdout.splitlines()
    tables = [i for i, line in enumerate(lines) if line.split()[:2] == ["epoch", "train_loss"]]
    assert len(tables) == 2
    accuracy = [float(lines[i + 2].split()[3]) for i in tables]
    assert min(accuracy) > 0.6
    pictures = {path.name: path.stat().st_size for path in (tmp_path / "pictures").iterdir()}
    assert sorted(pictures) == ["losses.png", "lr_find.png", "schedule.png"]
    assert min(pictures.values()) > 5000
    assert lines[-1] == "pictures in pictures: losses.png, lr_find.png, schedule.png"


def test_a_given_rate_needs_no_sweep(tmp_path, capsys):
    assert demo.main(["--epochs", "1", "--lr", "0.01", "--out", str(tmp_path)]) == 0
    assert "lr_find" not in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["losses.png", "schedule.png"]


@pytest.mark.parametrize(
    "option",
    [["--epochs", "0"], ["--lr", "x"], ["--lr", "-1"], ["--device", "abacus"], ["--data", "x"]],
)
def test_a_bad_option_is_told_by_name(option, capsys):
    with pytest.raises(SystemExit) as stopped:
        demo.main(option)
    assert stopped.value.code == 2
    assert f"argument {option[0]}" in capsys.readouterr().err


def test_data_that_is_nowhere_is_one_line(monkeypatch, capsys):
    def nowhere(**_):
        raise FileNotFoundError("MNIST is not here: set ONECYCLE_DATA")

    monkeypatch.setitem(builtin.DATA_SETS, "mnist", nowhere)
    assert demo.main(["--data", "mnist"]) == 1
    assert capsys.readouterr().err == "onecycle: MNIST is not here: set ONECYCLE_DATA\n"


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        demo.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in ("data", "epochs", "lr", "seed", "out", "device"))
