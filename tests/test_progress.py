"""The progress display on its four surfaces; the notebook for real, in a kernel."""

import io
import re
import sys

import nbformat
import pytest
from helpers import Clock, mlp
from nbclient import NotebookClient

from onecycle import Callback, Learner, ProgressBar, accuracy, display


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


def test_lr_find_has_a_bar_and_no_table_but_says_what_it_found(learn, terminal, capsys):
    stderr = terminal()
    learn.lr_find(num_it=20)
    shown = stderr.getvalue()
    assert "lr_find: 100%" in shown
    assert capsys.readouterr().out == f"lr_find: {learn.recorder.lr_find!r}\n"
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
    monkeypatch.setattr("onecycle.callbacks.progress.time", Clock(learn, 20.0))
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    learn.fit(1)
    between = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 1/1")
    ]
    assert [line.split(", ")[0] for line in between] == [f"epoch 1/1: {n}/10" for n in (3, 6, 9)]
    assert re.fullmatch(r"epoch 1/1: 3/10, loss \d\.\d{4}, lr 1.00e-03, run 02:20 left", between[0])


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
    table = display.history_html([{"epoch": 1, "<b>": "<i>"}, {"epoch": 2}])
    assert "&lt;b&gt;" in table
    assert "<td>&lt;i&gt;</td>" in table
    assert table.count("<td>") == 2


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
    assert re.findall(r'<th scope="row">(\d)</th>', table) == ["1", "2"]
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
        assert re.search(r"epoch 1/2 +0/23 \[", shown)
        assert re.search(r"lr_find +0/20 \[", shown)
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


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000000"), (0.25, "0.250000"), (1e-8, "1.0000e-08"), (1e30, "1.0000e+30"), (3, "3")],
)
def test_a_number_of_any_size_fits_its_column(value, text):
    assert display.cell("valid_loss", value) == text


def test_a_number_of_numpy_or_torch_is_a_number():
    import numpy as np
    import torch

    assert display.cell("m", torch.tensor(0.5)) == display.cell("m", np.float32(0.5)) == "0.500000"


def test_an_empty_variable_counts_as_none(learn, monkeypatch, capsys):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "")
    learn.fit(1)
    assert "train_loss" in capsys.readouterr().out


def test_a_bar_moves_on_when_batches_become_slow(terminal):
    stderr = terminal()
    bar = display.Terminal()
    bar.open("epoch 1/1", 1600)
    for done in (200, 400, 600, 605, 610, 1600):
        bar.move(done, "1.0", "1e-3", 1.0)
    bar.end()
    assert [int(n) for n in re.findall(r"(\d+)/1600", stderr.getvalue())] == [
        0, 200, 400, 600, 605, 610, 1600
    ]  # fmt: skip


def test_the_time_left_counts_what_validations_take(learn, monkeypatch):
    """Three epochs of ten steps of 1 s, each with a validation of 4 s."""
    bar, left = ProgressBar(), []
    seconds = [0.0]
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    monkeypatch.setattr("onecycle.callbacks.progress.time.monotonic", lambda: seconds[0])
    monkeypatch.setattr(display.Log, "refresh", 0.0)
    monkeypatch.setattr(display.Log, "move", lambda self, done, loss, lr, left_: left.append(left_))

    class Time(Callback):
        def on_batch_begin(self, learn):
            seconds[0] += 1.0

        def on_validate_batch_end(self, learn):
            seconds[0] += 1.0

    learn.display = bar
    learn.fit(3, callbacks=Time)
    training = [n for n in left if n is not None]
    # After the first batch 29 s of training are left, and validations are not known yet.
    assert training[0] == pytest.approx(29.0)
    # After the first batch of the second epoch: 19 s of training and two validations.
    assert pytest.approx(19.0 + 2 * 4.0) in training
    assert training[-1] == pytest.approx(0.0)
    left.clear()
    learn.fit_one_cycle(1, 0.01, tot_epochs=10, callbacks=Time)
    assert left[:10] == pytest.approx(range(9, -1, -1))


@pytest.fixture
def page(monkeypatch):
    """What a notebook would show: a list of [content now, ...] by place, and every update."""
    places, updates = [], []

    def show(content, handle):
        updates.append(content)
        if handle is None:
            places.append(content)
            return len(places) - 1
        places[handle] = content
        return handle

    monkeypatch.setattr(display, "show", show)
    monkeypatch.setattr(display, "find_spec", lambda name: None)
    monkeypatch.setattr(display, "in_notebook", lambda: True)
    monkeypatch.setenv("ONECYCLE_PROGRESS", "auto")
    return places, updates


def test_a_table_of_very_short_epochs_is_not_shown_anew_for_each(learn, page, monkeypatch):
    monkeypatch.setattr(display.Notebook, "refresh", 1000.0)
    learn.fit(5)
    tables = [content for content in page[1] if "<table" in content["text/html"]]
    assert [table["text/html"].count("<tr>") - 1 for table in tables] == [1, 5]


def test_nothing_of_the_bar_stays_on_the_page(learn, page):
    learn.lr_find(num_it=10, refine=False)
    learn.fit(1)
    sweep, table, bar = page[0]
    assert sweep == bar == display.EMPTY
    assert table["text/html"].startswith('<table class="onecycle">')


def test_no_logging_silences_the_live_picture_too(data, page):
    learn = Learner(data, mlp(), live_plot=True)
    with learn.no_logging():
        learn.fit(1)
    assert page[0] == []
