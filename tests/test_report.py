"""learn.report: one page that shows what was recorded and needs nothing else."""

import platform
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
import torch
from helpers import Log, mlp, sgd
from matplotlib import pyplot as plt

from onecycle import CancelEpoch, Learner, accuracy, error_rate, report

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """What a page holds; a tag that is not closed in its turn is an error."""

    def __init__(self, text):
        super().__init__()
        self.text, self.open, self.tags, self.tables = text, [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def pictures(page):
    """Every picture by its title, as XML."""
    found = re.findall(r"<figcaption>(.*?)</figcaption>\n(<svg.*?</svg>)", page.text, re.DOTALL)
    return {title: ElementTree.fromstring(svg) for title, svg in found}


def written(learn, path):
    return Page(report.write(learn, path / "run.html").read_text("utf-8"))


@pytest.fixture
def trained(data):
    """A sweep, then two fits of two and one epochs, 10 steps each."""
    learn = Learner(data, mlp(), metrics=[accuracy], clip=1.0, precision="bf16", callbacks=[Log])
    learn.lr_find(num_it=30)
    learn.fit_one_cycle(2, 0.02)
    learn.fit(1, 1e-3)
    for row in learn.recorder.history:
        row["seconds"] = 0.4  # whatever else this machine does
    return learn


@pytest.fixture
def page(trained, tmp_path):
    return written(trained, tmp_path)


def test_it_returns_the_path_and_leaves_nothing_beside_it(trained, tmp_path):
    path = report.write(trained, str(tmp_path / "a" / "run.html"))
    assert path == tmp_path / "a" / "run.html"
    assert list(path.parent.iterdir()) == [path]


def test_a_learner_that_has_not_trained_has_no_report(learn, tmp_path):
    learn.lr_find(num_it=10)
    with pytest.raises(ValueError, match="train first"):
        report.write(learn, tmp_path / "run.html")
    assert list(tmp_path.iterdir()) == []


def test_the_table_of_epochs_is_the_history(page, trained):
    head, *rows = page.tables[0]
    assert head == ["epoch", "train_loss", "valid_loss", "accuracy", "lr", "time"]
    assert rows == [
        [
            str(row["epoch"]),
            *(f"{row[name]:.6f}" for name in head[1:4]),
            f"{row['lr']:.2e}",
            "00:00",
        ]
        for row in trained.recorder.history
    ]


def test_time_is_minutes_and_seconds(trained, tmp_path):
    trained.recorder.history[1]["seconds"] = 754.9
    page = written(trained, tmp_path)
    assert page.tables[0][2][-1] == "12:34"
    assert "3 epochs in 12.6 minutes." in page.text


def test_epochs_need_not_have_the_same_columns(data, tmp_path):
    learn = Learner(data, mlp(), callbacks=[Log({("on_batch_begin", 4): CancelEpoch()})])
    learn.fit(2)
    head, first, second = written(learn, tmp_path).tables[0]
    assert head == ["epoch", "train_loss", "valid_loss", "lr", "time"]
    assert first[2] == ""
    assert second[2] == f"{learn.recorder.history[1]['valid_loss']:.6f}"


def test_the_first_sentence_names_the_best_epoch_and_the_last(trained, tmp_path):
    for row, loss in zip(trained.recorder.history, (0.5, 0.25, 0.75), strict=True):
        row |= {"valid_loss": loss, "accuracy": 1 - loss, "train_loss": loss / 2}
    assert (
        "Lowest validation loss in epoch 2: train_loss 0.125000, valid_loss 0.250000, "
        "accuracy 0.750000. Last epoch: train_loss 0.375000, valid_loss 0.750000, "
        "accuracy 0.250000."
    ) in written(trained, tmp_path).text
    trained.recorder.history[2]["valid_loss"] = 0.125
    assert "The last epoch has the lowest validation loss:" in written(trained, tmp_path).text


def test_every_picture_has_a_name_for_those_who_cannot_see_it(page):
    titles = ["Losses", "Metrics", "Schedule", "Gradients", "Learning rate finder"]
    assert list(pictures(page)) == titles
    assert [svg["role"] for svg in page.all("svg")] == ["img"] * 5
    assert page.all("svg")[1]["aria-label"] == "Of every epoch: accuracy"


def test_pictures_of_what_there_is(data, tmp_path):
    learn = Learner((data.train, None), mlp(), opt_func=torch.optim.Adagrad)
    learn.fit(1)
    drawn = pictures(written(learn, tmp_path))
    assert list(drawn) == ["Losses", "Schedule"]
    assert {"learning rate", "epoch"} <= set(drawn["Schedule"].itertext())
    assert "momentum" not in set(drawn["Schedule"].itertext())


def test_what_is_drawn_is_what_was_recorded(page, trained):
    paths = [path.get("d") for path in pictures(page)["Losses"].iter("path")]
    curve = max(paths, key=len)
    heights = np.array([float(y) for y in re.findall(r"[ML] \S+ (\S+)", curve)])
    assert np.corrcoef(-heights, trained.recorder.losses)[0, 1] == pytest.approx(1, abs=1e-4)


def test_no_script_and_nothing_to_load(page):
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith(("on", "src"))]
    links = [value for _, attrs in page.tags for key, value in attrs.items() if "href" in key]
    assert all(link.startswith("#") for link in links)
    assert "http" not in page.text
    assert "@import" not in page.text


def test_ids_are_of_one_thing_each_and_references_find_theirs(page):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)\"", page.text)
    assert {a or b for a, b in used} <= set(ids)


def test_headings_language_and_table_headers(page):
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert {attrs["scope"] for attrs in page.all("th")} == {"col", "row"}


EVIL = '<script>alert("1")</script>&$x^{$'


def test_names_cannot_become_markup(data, tmp_path):
    model = torch.nn.Sequential()
    model.add_module("<b>$title", mlp())
    learn = Learner(data, model, metrics={EVIL: accuracy})
    learn.fit(1)
    page = written(learn, tmp_path)
    assert not {tag for tag, _ in page.tags} & {"script", "b"}
    assert page.tables[0][0][3] == EVIL
    assert EVIL in set(pictures(page)["Metrics"].itertext())
    assert page.all("svg")[1]["aria-label"] == f"Of every epoch: {EVIL}"


def test_settings(page, trained):
    settings = dict(page.tables[2])
    assert settings == {
        "model": "Sequential",
        "parameters": "1,242 (trainable 1,242, frozen 0)",
        "optimizer": "AdamW(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01 or 0)",
        "loss": "cross_entropy (inferred)",
        "metrics": "accuracy",
        "epoch": "10 batches of 30 samples",
        "precision": "bf16",
        "accumulate": "1 batch",
        "clip": "1",
        "device": "cpu",
        "callbacks": "Log",
    }
    assert repr(trained.model).splitlines()[1].strip() in page.text


def test_fits(page):
    _, first, second = page.tables[1]
    assert first == ["1", "2", "20", "2.00e-02", "8.00e-08"]
    assert second == ["2", "1", "10", "1.00e-03", "1.00e-03"]


def test_versions_but_no_path_no_machine_and_no_user(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "somebodys-machine")
    for name in ("LOGNAME", "USER", "HOME"):
        monkeypatch.setenv(name, "somebody")
    page = written(trained, tmp_path)
    versions = dict(page.tables[3])
    assert versions["torch"] == torch.__version__
    assert versions["Python"] == platform.python_version()
    for private in (str(tmp_path), str(Path.cwd()), "somebody", "run.html"):
        assert private not in page.text


def test_the_same_history_gives_the_same_page(trained, tmp_path):
    one = written(trained, tmp_path).text
    plt.plot([1, 2])
    assert written(trained, tmp_path).text == one


def test_the_style_and_the_figures_of_the_user_are_left_alone(trained, tmp_path):
    plain = written(trained, tmp_path).text
    with plt.style.context("dark_background"):
        before = dict(mpl.rcParams)
        assert written(trained, tmp_path).text == plain
        assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


@pytest.mark.parametrize("lr", [1e30, 0.01])
def test_losses_that_are_not_finite_and_epochs_without_steps(data, tmp_path, lr):
    cancel = Log({("on_epoch_begin", 1): CancelEpoch()}) if lr < 1 else Log()
    options = {"metrics": [error_rate], "callbacks": [cancel], "on_nan": "ignore"}
    learn = Learner(data, mlp(), opt_func=sgd, **options)
    learn.fit(1, lr)
    page = written(learn, tmp_path)
    assert page.tables[0][1][1] == "nan"
    assert "Losses" in pictures(page)


def test_a_long_training_makes_no_large_page(trained, tmp_path):
    state, n = trained.recorder.state_dict(), 20_000
    noise = np.random.default_rng(0).gamma(2, 0.1, n)
    state["losses"] = (2 * np.exp(-np.arange(n) / n) + noise).tolist()
    state |= {"lrs": [1e-3] * n, "moms": [0.9] * n, "places": list(range(1, 201))}
    state["grad_norms"] = noise.tolist()
    state["marks"] = [[100 * epoch, epoch] for epoch in range(201)]
    state["history"] = [{**state["history"][-1], "epoch": i + 1} for i in range(200)]
    trained.recorder.load_state_dict({**state, "fits": [(0, 0)]})
    page = written(trained, tmp_path)
    assert len(page.tables[0]) == 201
    assert len(page.text) < 500_000


def test_a_run_that_was_broken_off_at_once_has_its_losses(data, tmp_path):
    learn = Learner(data, mlp(), callbacks=[Log({("on_batch_end", 5): KeyboardInterrupt()})])
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1)
    page = written(learn, tmp_path)
    assert "Broken off within the first epoch." in page.text
    assert "No epoch was finished." in page.text
    assert "Losses" in pictures(page)
