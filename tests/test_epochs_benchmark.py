"""The measurements of tests/benchmarks/epochs.py run, on little data, and its figures add up."""

import json

import pytest
from epochs import PARTS, main, measured, pm, regrets, tasks_of
from epochs_tasks import SMOKE, TASKS


@pytest.mark.parametrize("part", PARTS)
def test_every_part_runs_and_prints_its_tables(part, tmp_path, capsys):
    main(["--cache", str(tmp_path), "--part", part, "--smoke", "--processes", "0"])
    printed = capsys.readouterr().out
    assert "| :--" in printed
    assert "nan" not in printed
    assert len(list(tmp_path.iterdir())) == SMOKE[0].seeds


def test_what_was_measured_is_not_measured_again(tmp_path):
    job = ("cycles", SMOKE[0], 0)
    first = measured(job, tmp_path)
    (path,) = tmp_path.iterdir()
    assert list(first) == ["1 x 4", "2 x 2", "4 x 1"]
    path.write_text(json.dumps({"kept": True}))
    assert measured(job, tmp_path) == {"kept": True}


@pytest.mark.parametrize(
    ("judge", "lost", "away"),
    [("all", [0.0, 0.25], [0, 1]), ("others", [0.5, 1.0], [-1, 1]), ("held", [2.0, 0.0], [-1, 0])],
)
def test_a_regret_is_read_off_the_mean_of_grids(judge, lost, away):
    results = [
        {"sizes": [1, 2], "chosen": {"it": [1, 1.0]}, "held": [3.0, 1.0]},
        {"sizes": [1, 2], "chosen": {"it": [2, 1.0]}, "held": [3.0, 1.0]},
    ]
    results[0]["curves"] = {"complete 1cycles": [1.0, 2.0]}
    results[1]["curves"] = {"complete 1cycles": [1.5, 1.0]}
    found = regrets(results, "it", judge)
    assert found == (pytest.approx(lost), pytest.approx(away))


def test_a_mean_comes_with_its_standard_error():
    assert pm([1.0, 3.0], 2) == "2.00 ± 1.00"
    assert pm([0.5], 1, sign=True) == "+0.5"


def test_a_part_has_the_tasks_that_it_is_about():
    assert {task.name for task in tasks_of("stopping", smoke=False)} == {
        "noise-sgd",
        "noise-adamw_bn",
    }
    assert tasks_of("budgets", smoke=False) == TASKS
    assert tasks_of("search", smoke=True) == SMOKE


def test_no_image_is_in_two_parts_of_a_split():
    split = SMOKE[0].data(0)
    parts = [{tuple(image.flatten().tolist()) for image in x} for x, _ in vars(split).values()]
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]
