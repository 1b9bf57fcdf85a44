"""learn.summary: what the model is made of, seen by one pass that leaves no trace."""

from html.parser import HTMLParser

import pytest
import torch
from helpers import everything, mlp, same, split_in_two
from torch import nn

from onecycle import DataLoaders, Learner
from onecycle.summary import WIDTH, summarize


def summary_of(learn):
    return summarize(learn._evaluator, learn.data.train, learn.opt, learn.loss_func)


def of(model, inputs, target=None, **options):
    """The summary of a learner whose only batch is `inputs`, as a sequence or as a mapping."""
    target = torch.zeros(4, dtype=torch.long) if target is None else target
    named = isinstance(inputs, dict)
    batch = {**inputs, "label": target} if named else (*inputs, target)
    return summary_of(Learner(([batch], None), model, loss_func=nn.CrossEntropyLoss(), **options))


def column(summary, key):
    return [row[key] for row in summary.rows]


def test_a_row_for_each_module_in_the_order_they_run(learn):
    summary = summary_of(learn)
    assert column(summary, "name") == ["0", "1", "2", "3", "4"]
    assert column(summary, "class") == ["Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]
    assert column(summary, "shape") == [(30, 16)] * 4 + [(30, 10)]
    assert column(summary, "parameters") == [64 * 16 + 16, 32, 0, 0, 16 * 10 + 10]
    assert column(summary, "trainable") == ["yes", "yes", "", "", "yes"]
    assert summary.totals == {"parameters": 1242, "trainable": 1242, "frozen": 0}


def test_layer_groups_and_what_is_frozen(data):
    model = mlp()
    model[0].weight.requires_grad_(False)
    model[1].requires_grad_(False)
    learn = Learner(data, model, splitter=split_in_two)
    learn.fit(1, [1e-3, 1e-2])
    summary = summary_of(learn)
    assert column(summary, "trainable") == ["partly", "no", "", "", "yes"]
    assert column(summary, "groups") == [[0], [0], [], [], [1]]
    assert summary.totals == {"parameters": 1242, "trainable": 186, "frozen": 1056}
    sizes = [(g["group"], g["parameters"], g["trainable"]) for g in summary.groups]
    assert sizes == [(0, 1072, 16), (1, 170, 170)]
    assert [group["lr"] for group in summary.groups] == [1e-3, 1e-3]


def test_what_the_optimizer_does_not_hold_is_said(data):
    model = mlp()
    summary = summary_of(Learner(data, model, opt_func=torch.optim.SGD(model[4].parameters(), 0.1)))
    assert column(summary, "groups") == [[], [], [], [], [0]]
    assert [(g["group"], g["parameters"], g["lr"]) for g in summary.groups] == [
        (0, 170, 0.1),
        (None, 1072, None),
    ]


@pytest.mark.parametrize("mode", [True, False])
def test_it_leaves_no_trace(data, mode):
    learn = Learner(data, mlp())
    learn.fit(1)
    learn.model[1].train(mode)
    before = everything(learn), list(learn.data.train)
    attributes = [dict(vars(module)) for module in learn.model.modules()]
    summary_of(learn)
    assert same(before, (everything(learn), list(learn.data.train)))
    assert same(attributes, [dict(vars(module)) for module in learn.model.modules()])


def test_it_leaves_the_order_of_a_shuffled_loader(digit_tensors):
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(*digit_tensors), 30, shuffle=True)
    learn = Learner((loader, None), mlp())
    before = everything(learn)
    summary_of(learn)
    assert same(before, everything(learn))


def test_hooks_are_gone_after_an_error(data):
    learn = Learner(data, nn.Sequential(nn.Linear(64, 10), nn.Linear(9, 10)))
    before = everything(learn)
    with pytest.raises(RuntimeError, match="shapes"):
        summary_of(learn)
    assert not [m for m in learn.model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert same(before, everything(learn))


def test_data_without_a_batch():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    learn = Learner(DataLoaders(Stream(), steps_per_epoch=3), mlp())
    with pytest.raises(ValueError, match="no batch"):
        summary_of(learn)


class Parts(nn.Module):
    """A token of its own, a layer called twice, one never called, tied weights, a dict out."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(3))
        self.head = nn.Linear(3, 5, bias=False)
        self.twice = nn.Linear(3, 3)
        self.never = nn.Linear(2, 2)
        self.tied = nn.Linear(3, 5, bias=False)
        self.tied.weight = self.head.weight
        self.again = self.twice
        self.pair = nn.LSTM(5, 2)

    def forward(self, x, extra):
        x = self.twice(self.twice(x + extra)[:2]) + self.token
        both = self.pair(self.tied(x) + self.head(x))
        return {"state": both[1], "scores": both[0]}


@pytest.mark.parametrize("named", [True, False])
def test_unusual_models(named):
    x, extra = torch.zeros(4, 3), torch.zeros(3)
    summary = of(Parts(), {"x": x, "extra": extra} if named else (x, extra))
    rows = [(r["name"], r["shape"], r["parameters"], r["trainable"]) for r in summary.rows]
    assert rows == [
        ("", (1, 2), 3, "yes"),
        ("twice", (4, 3), 12, "yes"),
        ("tied", (2, 5), 15, "yes"),
        ("head", (2, 5), 0, "yes"),
        ("pair", (2, 2), 72, "yes"),
        ("never", None, 6, "yes"),
    ]
    assert summary.totals["parameters"] == sum(column(summary, "parameters")) == 108


def test_an_encoder_shows_its_layers_though_it_has_a_fast_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    summary = of(nn.TransformerEncoder(layer, 2), [torch.zeros(4, 5, 8)])
    shapes = {row["name"]: row["shape"] for row in summary.rows}
    assert shapes["layers.1.linear1"] == (4, 5, 16)
    assert shapes["layers.1.self_attn"] == (4, 5, 8)


def test_a_compiled_model_is_not_compiled_for_it(learn):
    def refuse(graph, example):
        raise AssertionError("compiled")

    learn.model.compile(backend=refuse)
    assert column(summary_of(learn), "shape")[-1] == (30, 10)


def test_the_text_says_it_all(data):
    text = str(summary_of(Learner(data, mlp(), splitter=split_in_two))).splitlines()
    assert " ".join(text[0].split()) == "name class output shape parameters trainable group"
    assert " ".join(text[1].split()) == "0 Linear 30 x 16 1,040 yes 0"
    assert text[-7].split() == ["0", "1,072", "1,072", "1.00e-03"]
    assert [" ".join(line.split()) for line in text[-4:]] == [
        "parameters 1,242 (trainable 1,242, frozen 0)",
        "loss cross_entropy (inferred)",
        "optimizer AdamW(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01 or 0)",
        "device cpu",
    ]


def test_long_names_fit_the_width(data):
    model = nn.Sequential()
    model.add_module("a_long_name_of_a_module" * 5, nn.Sequential(nn.Linear(64, 10)))
    lines = str(summary_of(Learner(data, model))).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[1].startswith("...")
    assert "module.0  Linear" in lines[1]


def test_the_html_is_escaped_and_plain(data):
    found = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append((tag, dict(attrs)))

    model = nn.Sequential()
    model.add_module("<script>", nn.Linear(64, 10))
    html = summary_of(Learner(data, model))._repr_html_()
    Parser().feed(html)
    assert {tag for tag, _ in found} == {"table", "thead", "tbody", "tr", "th", "td"}
    assert {name for _, attributes in found for name in attributes} == {"scope"}
    assert "&lt;script&gt;" in html
