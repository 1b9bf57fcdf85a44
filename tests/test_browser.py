"""What a user sees: the notebook in JupyterLab, and a report, in a real browser."""

import json
from dataclasses import dataclass
from pathlib import Path

import browser
import nbformat
import pytest
from nbformat.v4 import new_code_cell

MISSING = browser.missing()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(MISSING), reason="not installed: " + ", ".join(MISSING)),
]

NOTEBOOK = Path(__file__).parent.parent / "nbs" / "01_first_cycle.ipynb"
WITHOUT_WIDGETS = "import sys; sys.modules['ipywidgets'] = None"
LONG = """
import json, time
from pathlib import Path
from onecycle import Callback

class SlowUntilSeen(Callback):
    def on_batch_end(self, learn):
        if not Path("seen").exists():
            time.sleep(0.05)

learn.fit_one_cycle(30, lr, callbacks=[SlowUntilSeen()])
"""
HISTORIES = """
learned = learn.recorder.history
print(json.dumps([learned[:8], constant.recorder.history, learned[8:]]))
"""


@dataclass
class Run:
    """What the page showed during the long training, at the end and when loaded again."""

    training: dict
    finished: dict
    reloaded: dict
    saved: nbformat.NotebookNode

    @property
    def histories(self):
        return json.loads(self.finished["texts"][-1])


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browser.chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("notebooks")
    with browser.jupyterlab(tmp_path_factory.mktemp("home"), root) as server:
        yield server


@pytest.fixture(scope="module", params=["widgets", "plain"])
def run(request, driver, server):
    """The notebook and one long training, run in JupyterLab, saved and loaded again."""
    name = f"{request.param}/{NOTEBOOK.name}"
    path = Path(server["root_dir"], name)
    path.parent.mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells += [new_code_cell(LONG), new_code_cell(HISTORIES)]
    if request.param == "plain":
        notebook.cells.insert(0, new_code_cell(WITHOUT_WIDGETS))
    nbformat.write(notebook, path)

    lab = browser.Lab(driver, server, name)
    assert lab.look(lambda page: page["texts"])["texts"] != []
    lab.start("notebook:clear-all-cell-outputs")
    assert lab.look(lambda page: not page["texts"])["texts"] == []
    lab.start("notebook:run-all-cells")
    bars = set()
    training = lab.look(lambda page: done(page) or moving(page, bars))
    browser.shoot(driver, f"{request.param}-training")
    (path.parent / "seen").touch()
    finished = lab.look(done)
    browser.shoot(driver, f"{request.param}-finished")
    lab.save()
    lab.open()
    reloaded = lab.look(lambda page: page == finished)
    browser.shoot(driver, f"{request.param}-reloaded")
    return Run(training, finished, reloaded, nbformat.read(path, as_version=4))


def done(page):
    """The last cell has run and all is drawn, or something went wrong."""
    ran = page["prompt"] not in ("[ ]:", "[*]:")
    return page["wrong"] or (ran and page["texts"][-1].startswith("[[{") and all(page["pictures"]))


def moving(page, bars):
    """The table of the long training has two rows, and its bar has been seen in three states."""
    bars.update(page["bars"][-1:] if len(page["tables"]) == 3 else ())
    return len(bars) >= 3 and page["bars"] and len(page["tables"][-1]) >= 2


def pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output for output in outputs if "image/png" in output.get("data", {})]


def test_while_it_trains_a_bar_moves_beneath_the_table(run):
    assert len(run.training["bars"]) == 1
    assert 2 <= len(run.training["tables"][-1]) < 30


def test_no_bar_is_left(run):
    assert run.finished["bars"] == []
    assert not [text for text in run.finished["texts"] if "widget" in text]
    assert "widget-view" not in json.dumps(run.saved)


def test_a_table_has_a_row_for_every_epoch_with_the_numbers_of_the_history(run):
    assert [len(table) for table in run.finished["tables"]] == [8, 8, 30]
    for table, history in zip(run.finished["tables"], run.histories, strict=True):
        for cells, row in zip(table, history, strict=True):
            numbers = [float(cell) for cell in cells[:-1]]
            assert numbers == pytest.approx(list(row.values())[:-1], rel=5e-3, abs=5e-7)


def test_a_table_names_its_columns(run):
    names = ["epoch", "train_loss", "valid_loss", "accuracy", "lr", "time"]
    assert run.finished["heads"] == [names] * 3


def test_every_plot_is_a_picture(run):
    assert len(pictures(run.saved)) == len(pictures(nbformat.read(NOTEBOOK, as_version=4)))
    assert run.finished["pictures"] == [True] * len(pictures(run.saved))


def test_nothing_went_wrong_and_nothing_was_written_to_stderr(run):
    assert run.finished["wrong"] == []
    outputs = [output for cell in run.saved.cells for output in cell.get("outputs", ())]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


def test_loaded_again_it_looks_the_same(run):
    assert run.reloaded == run.finished


def test_a_report_needs_nothing_but_its_file(learn, driver, tmp_path):
    learn.fit_one_cycle(2, 1e-2)
    learn.report(tmp_path / "run.html")
    driver.get("about:blank")
    driver.get_log("browser"), driver.get_log("performance")
    driver.get((tmp_path / "run.html").as_uri())
    browser.shoot(driver, "report")

    assert driver.get_log("browser") == []
    assert browser.requests(driver) == [(tmp_path / "run.html").as_uri()]
    rows = "return document.querySelectorAll('[aria-labelledby=epochs] tbody tr').length"
    assert driver.execute_script(rows) == 2
    sizes = "return [...document.querySelectorAll('svg')].map(svg => svg.clientWidth)"
    assert min(driver.execute_script(sizes)) > 100
