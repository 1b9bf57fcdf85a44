"""README, notebooks and examples: everything shown runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_every_block_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)  # noqa: S102 - that is the test


def test_the_readme_has_two_commands_and_ci_runs_them_word_for_word():
    commands = [block.strip() for block in blocks("sh")]
    assert commands == [
        "pip install -e . && python -m onecycle",
        'pip install -e ".[test]" && pytest',
    ]
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert set(commands) <= set(script)


def test_the_readme_links_to_files_that_exist():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links if not link.startswith("http"))


def test_the_events_of_the_readme_are_those_of_the_contract():
    from onecycle.callback import EVENTS

    assert re.findall(r"^ *(on_\w+)", README, flags=re.MULTILINE) == list(EVENTS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")
def test_a_notebook_runs_as_it_is(path, monkeypatch, tmp_path):
    monkeypatch.delenv("ONECYCLE_PROGRESS")
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_its_outputs(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    pictures = [o for c in cells for o in c.outputs if "image/png" in o.get("data", {})]
    assert pictures
    assert not [o for c in cells for o in c.outputs if o.get("name") == "stderr"]
    assert path.stat().st_size < 500_000


def test_the_example_runs_on_digits(tmp_path):
    command = [sys.executable, ROOT / "examples" / "mnist_sample.py", "--seeds", "2"]
    command += ["--data", "digits", "--pictures", tmp_path]
    env = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert done.stderr == ""
    assert len(re.findall(r"fit_one_cycle\(2, 5e-2\) .*0\.0229 ", done.stdout)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "lr_find.png",
        "one_of_twenty.png",
        "schedule.png",
    ]
