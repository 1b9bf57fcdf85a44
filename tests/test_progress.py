"""The progress display on its four surfaces; the notebook for real, in a kernel."""

import io
import re
import sys

import nbformat
import pytest
from helpers import mlp
from nbclient import NotebookClient

from onecycle import Learner, accuracy, display


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Make stderr a terminal and return it; pytest sets its own anew for the test."""
    monkeypatch.setenv("ONECYCLE_PROGRESS", "auto")
    monkeypatch.setattr(display.Terminal, "refresh", 0.0)

    def install():
        monkeypatch.setattr("sys.stderr", Terminal())
        return sys.stderr

    return install


def test_the_terminal_bar_tells_all_and_leaves_a_clean_line(learn, terminal, capsys):
    stderr = terminal()
    learn.fit(2, 0.01)
    shown = stderr.getvalue()
    for text in ("epoch 1/2", "epoch 2/2", "10/10", "loss ", "lr 1.00e-02", "it/s", "run 00:0"):
        assert text in shown
    assert shown.split("\r")[-1].strip() == ""
    assert capsys.readouterr().out.count("\n") == 3


def test_the_terminal_bar_of_a_part_counts_to_its_own_end(learn, terminal):
    stderr = terminal()
    learn.fit_one_cycle(2, 0.01, tot_epochs=10)
    full = [line for line in stderr.getvalue().split("\r") if "2/10: 100%" in line]
    assert full
    assert all("run 00:00 left" in line for line in full)


def test_lr_find_has_a_bar_and_no_table(learn, terminal, capsys):
    stderr = terminal()
    learn.lr_find(num_it=20)
    shown = stderr.getvalue()
    assert "lr_find: 100%" in shown
    assert capsys.readouterr().out == ""
    with learn.no_bar():
        learn.lr_find(num_it=20)
    assert stderr.getvalue() == shown


def test_the_table_is_aligned(data, monkeypatch, capsys):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    Learner(data, mlp(), metrics=[accuracy]).fit(2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["epoch", "train_loss", "valid_loss", "accuracy", "lr", "time"]


def test_a_log_gets_a_line_an_epoch(learn, monkeypatch, capsys):
    monkeypatch.delenv("ONECYCLE_PROGRESS")
    learn.fit(3)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert len(captured.out.splitlines()) == 4
    assert not set("\r\x1b") & set(captured.out)


def test_a_log_gets_a_line_a_minute(learn, monkeypatch, capsys):
    minutes = iter(range(10_000))
    monkeypatch.setattr("onecycle.callbacks.progress.time.monotonic", lambda: 20.0 * next(minutes))
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    learn.fit(1)
    between = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 1/1")
    ]
    # The clock is read at every batch and after every line: a line for 3 readings of 20 s.
    assert 2 <= len(between) <= 4
    assert re.fullmatch(r"epoch 1/1: \d+/10, loss \d\.\d{4}, lr 1.00e-03, run \S+ left", between[0])


def test_off_shows_nothing(learn, capsys):
    learn.fit(1)
    learn.lr_find(num_it=10)
    assert capsys.readouterr() == ("", "")


def test_only_the_first_process_shows(learn, monkeypatch, capsys):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    monkeypatch.setenv("RANK", "1")
    learn.fit(1)
    assert capsys.readouterr().out == ""


def test_a_misspelt_variable_is_told_before_training(learn, monkeypatch):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "quiet")
    with pytest.raises(ValueError, match="ONECYCLE_PROGRESS must be one of 'auto', 'notebook'"):
        learn.fit(1)
    assert learn.step == 0


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00"), (59.9, "00:59"), (3600, "1:00:00")])
def test_clock(seconds, text):
    assert display.clock(seconds) == text


def test_an_html_table_escapes_names_and_leaves_gaps():
    table = display.html_table([{"epoch": 1, "<b>": 0.5}, {"epoch": 2}])
    assert "&lt;b&gt;" in table
    assert "<b>" not in table
    assert table.count("<td") == 4


CELLS = """
from onecycle import Learner, accuracy, data, models, display
import torch
{setup}
torch.manual_seed(0)
display.Notebook.refresh = 0.0
learn = Learner(data.digits(), models.simple_cnn((1, 8, 10)), metrics=[accuracy], live_plot={live})
print("before")
learn.fit(2)
print("after")
""".strip()


def run(live=False, setup=""):
    """The outputs of a cell that trains."""
    cell = nbformat.v4.new_code_cell(CELLS.format(live=live, setup=setup))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(notebook, timeout=120).execute()
    return cell.outputs


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.delenv("ONECYCLE_PROGRESS")


def html(outputs):
    return [o.data["text/html"] for o in outputs if "text/html" in o.get("data", {})]


@pytest.mark.filterwarnings("default")
def test_a_notebook_keeps_a_static_table_and_no_bar(kernel):
    outputs = run()
    (table,) = [text for text in html(outputs) if text]
    assert table.startswith('<table class="onecycle">')
    assert re.findall(r"<td[^>]*>(\d)</td>", table) == ["1", "2"]
    assert [o.text for o in outputs if o.output_type == "stream"] == ["before\n", "after\n"]
    assert "progress" not in table
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert "train_loss" in outputs[1].data["text/plain"]


SPY = """
seen = []
show = display.show
display.show = lambda content, handle: (seen.append(str(content)), show(content, handle))[1]
"""


@pytest.mark.parametrize("widgets", [True, False])
@pytest.mark.filterwarnings("default")
def test_a_notebook_has_a_bar_while_it_trains(kernel, widgets):
    if widgets:
        pytest.importorskip("ipywidgets")
    hide = "" if widgets else "display.find_spec = lambda name: None"
    cell = CELLS.format(live=False, setup=SPY + hide)
    cell += "\nlearn.lr_find(num_it=20)\nprint('\\n'.join(seen))"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    NotebookClient(notebook, timeout=120).execute()
    shown = [o for o in notebook.cells[0].outputs if o.output_type == "stream"][-1].text
    if widgets:
        assert "HBox" in shown
    else:
        assert '<progress value="23" max="23"></progress> epoch 2/2: 23/23' in shown
        assert re.search(r'max="20"></progress> lr_find: 1\d/20', shown)
        assert re.search(r"\[00:0\d<00:00, [\d.]+it/s, loss [\d.]+, run 00:0", shown)
    assert shown.count("onecycle") <= 3


@pytest.mark.filterwarnings("default")
def test_a_live_plot_is_one_picture_updated_in_place(kernel):
    outputs = run(live=True)
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 1
    assert [o.text for o in outputs if o.output_type == "stream"] == ["before\n", "after\n"]
