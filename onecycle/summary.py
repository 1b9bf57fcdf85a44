"""What a model is made of and what trains it: a row for each module, then the totals."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from onecycle import batch as batches
from onecycle import optimizers
from onecycle.evaluation import Evaluator
from onecycle.step import infer_loss

WIDTH = 100
HEAD = ("name", "class", "output shape", "parameters", "trainable", "group")
GROUP_HEAD = ("group", "parameters", "trainable", "lr")
NOT_SHOWN = ("params", "param_names", "layer_group", "decay", "initial_lr")
Row = dict[str, Any]


@dataclass(frozen=True, repr=False)
class Summary:
    """The result of `Learner.summary`: plain data that prints as a table, in a notebook as HTML.

    Attributes:
        rows: for each module, in the order they run, its name, class, shape (of the first tensor
            of its first output; None where it did not run or gave none), parameters, trainable
            ("yes", "no", "partly", "" without parameters) and groups (its layer groups). Modules
            without children are listed, and those that own parameters beside their children's; a
            parameter in two modules counts in the first.
        totals: parameters, trainable and frozen, each parameter once.
        groups: for each layer group its number, parameters, trainable and lr; what the optimizer
            does not hold comes last, with None for number and lr.
        setup: loss, optimizer and device, in words.
    """

    rows: list[Row]
    totals: dict[str, int]
    groups: list[Row]
    setup: dict[str, str]

    def __repr__(self) -> str:
        """Return aligned tables, about 100 columns wide."""
        indent = " " * 12
        setup = [
            textwrap.fill(f"{name:<12}{text}", WIDTH, subsequent_indent=indent)
            for name, text in {**self._in_all(), **self.setup}.items()
        ]
        modules = _aligned([HEAD, *map(_cells, self.rows)], left=3)
        groups = _aligned([GROUP_HEAD, *map(_group_cells, self.groups)], left=0)
        return "\n".join([*modules, "", *groups, "", *setup])

    def _repr_html_(self) -> str:
        """Return the same as HTML tables without style."""
        setup = {**self._in_all(), **self.setup}
        return (
            html_table(HEAD, map(_cells, self.rows))
            + html_table(GROUP_HEAD, map(_group_cells, self.groups))
            + html_table((), setup.items())
        )

    def _in_all(self) -> dict[str, str]:
        return {"parameters": count_text(self.totals)}


def summarize(
    evaluator: Evaluator, loader: Iterable[Any], opt: torch.optim.Optimizer, loss_func: Any
) -> Summary:
    """Return the summary of a model by one forward pass in evaluation mode that leaves no trace.

    Args:
        evaluator: of the model, on its device.
        loader: training data; its first batch goes through the model.
        opt: the optimizer.
        loss_func: the loss; None is inferred from the batch.

    Raises:
        ValueError: `loader` yields no batch. What the model raises passes through.

    >>> from onecycle.data import digits
    >>> from onecycle.models import simple_cnn
    >>> model, data = simple_cnn((1, 16, 10)), digits().train
    >>> evaluator = Evaluator([model], torch.device("cpu"), torch.enable_grad)
    >>> summary = summarize(evaluator, data, torch.optim.SGD(model.parameters(), lr=0.1), None)
    >>> [(row["class"], row["shape"], row["parameters"]) for row in summary.rows][:2]
    [('Conv2d', (64, 16, 4, 4), 160), ('ReLU', (64, 16, 4, 4), 0)]
    """
    model = evaluator.model
    with evaluator.kept(loader):
        for batch in loader:
            inputs, target = batches.split(batches.to_device(batch, evaluator.device))
            break
        else:
            raise ValueError("data: train yielded no batch, there is nothing to show the model")
        # A compiled model would be compiled anew for the hooks.
        with _watched(model) as shapes, torch.compiler.set_stance("force_eager"):
            evaluator.predict(inputs)
    setup = {
        "loss": loss_name(loss_func) or _inferred(target),
        "optimizer": optimizer_text(opt),
        "device": str(evaluator.device),
    }
    return Summary(
        _rows(model, shapes, opt), counts(model.parameters()), _groups(model, opt), setup
    )


def counts(parameters: Iterable[Tensor]) -> dict[str, int]:
    """Return how many numbers `parameters` hold, in all, trainable and frozen.

    >>> counts(nn.Linear(3, 2).parameters())
    {'parameters': 8, 'trainable': 8, 'frozen': 0}
    """
    sizes = [(p.numel(), p.requires_grad) for p in parameters]
    total, trainable = sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns)
    return {"parameters": total, "trainable": trainable, "frozen": total - trainable}


def count_text(totals: Mapping[str, int]) -> str:
    """Return what `counts` returned in words.

    >>> count_text({"parameters": 2000, "trainable": 1500, "frozen": 500})
    '2,000 (trainable 1,500, frozen 500)'
    """
    return "{parameters:,} (trainable {trainable:,}, frozen {frozen:,})".format(**totals)


def optimizer_text(opt: torch.optim.Optimizer) -> str:
    """Return class and hyper-parameters; what differs between groups with each of its values.

    >>> model = nn.Linear(2, 1)
    >>> optimizer_text(torch.optim.SGD(model.parameters(), lr=0.1, nesterov=True, momentum=0.9))
    'SGD(lr=0.1, momentum=0.9, dampening=0, weight_decay=0, nesterov=True)'
    """
    values: dict[str, list[str]] = {}
    for group in opt.param_groups:
        for name, value in group.items():
            if name not in NOT_SHOWN and value is not None and value is not False:
                values.setdefault(name, []).append(_number(value))
    given = [f"{name}={' or '.join(dict.fromkeys(texts))}" for name, texts in values.items()]
    return f"{type(opt).__name__}({', '.join(given)})"


def loss_name(loss_func: Any) -> str:
    """Return the name of a function or of an object's class; an empty one for None."""
    if loss_func is None:
        return ""
    function = getattr(loss_func, "func", loss_func)
    return str(getattr(function, "__name__", type(function).__name__))


def html_table(head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """Return an HTML table; everything is escaped, the first cell of a row is its header.

    >>> print(html_table(["a", "b"], [["<i>", 1]]), end="")
    <table><thead><tr><th scope="col">a</th><th scope="col">b</th></tr></thead>
    <tbody>
    <tr><th scope="row">&lt;i&gt;</th><td>1</td></tr>
    </tbody></table>
    """
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    top = f"<thead><tr>{cells}</tr></thead>\n" if head else ""
    body = "".join(
        f'<tr><th scope="row">{escape(str(first))}</th>'
        + "".join(f"<td>{escape(str(value))}</td>" for value in rest)
        + "</tr>\n"
        for first, *rest in rows
    )
    return f"<table>{title}{top}<tbody>\n{body}</tbody></table>\n"


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[int, Any]]:
    """Give a dict that fills, as modules start, with the shape of each one's first output."""
    shapes: dict[int, Any] = {}

    def begin(module: nn.Module, _: Any) -> None:
        shapes.setdefault(id(module), None)

    def end(module: nn.Module, _: Any, output: Any) -> None:
        if shapes.get(id(module)) is None:
            shapes[id(module)] = next(_shapes(output), None)

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.enter_context(module.register_forward_pre_hook(begin))
            hooks.enter_context(module.register_forward_hook(end))
        yield shapes


def _shapes(output: Any) -> Iterator[tuple[int, ...]]:
    if isinstance(output, Tensor):
        if not output.is_nested:
            yield tuple(output.shape)
    elif isinstance(output, (Mapping, tuple, list)):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _shapes(part)


def _rows(model: nn.Module, shapes: dict[int, Any], opt: torch.optim.Optimizer) -> list[Row]:
    """Return the rows of the modules that ran, in their order, then of those that did not."""
    listed = {id(m): (name, m) for name, m in model.named_modules() if _own(m) or _is_leaf(m)}
    ran = [key for key in shapes if key in listed]
    group_of = {id(p): number for number, members in _members(opt).items() for p in members}
    counted: set[int] = set()
    rows = []
    for key in [*ran, *(key for key in listed if key not in shapes)]:
        name, module = listed[key]
        new = [p for p in _own(module) if id(p) not in counted]
        counted.update(map(id, new))
        rows.append(
            {
                "name": name,
                "class": type(module).__name__,
                "shape": shapes.get(key),
                "parameters": sum(p.numel() for p in new),
                "trainable": _trainable(_own(module)),
                "groups": sorted({group_of[id(p)] for p in _own(module) if id(p) in group_of}),
            }
        )
    return rows


def _groups(model: nn.Module, opt: torch.optim.Optimizer) -> list[Row]:
    """Return the rows of the layer groups, then of what no group holds, if there is anything."""
    groups = _members(opt)
    rates = optimizers.current(opt, "lr")
    rows: list[Row] = [{"group": i, **_sizes(groups[i]), "lr": rates[i]} for i in groups]
    held = {id(p) for members in groups.values() for p in members}
    rest = [p for p in model.parameters() if id(p) not in held]
    return [*rows, {"group": None, **_sizes(rest), "lr": None}] if rest else rows


def _members(opt: torch.optim.Optimizer) -> dict[int, list[Tensor]]:
    """Return the parameters of each layer group."""
    members: dict[int, list[Tensor]] = {i: [] for i in range(optimizers.n_groups(opt))}
    for i, group in enumerate(opt.param_groups):
        members[int(group.get("layer_group", i))] += group["params"]
    return members


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _sizes(parameters: Iterable[Tensor]) -> dict[str, int]:
    sizes = counts(parameters)
    return {name: sizes[name] for name in ("parameters", "trainable")}


def _trainable(parameters: list[nn.Parameter]) -> str:
    learning = {p.requires_grad for p in parameters}
    return "partly" if len(learning) == 2 else {True: "yes", False: "no"}.get(*learning, "")


def _inferred(target: Any) -> str:
    try:
        return f"{loss_name(infer_loss(target))} (inferred)"
    except ValueError:
        return "none, and none can be inferred"


def _cells(row: Row) -> list[str]:
    """Return a module's row as texts."""
    shape = "-" if row["shape"] is None else " x ".join(map(str, row["shape"])) or "scalar"
    groups = ", ".join(map(str, row["groups"]))
    name = row["name"] or "(model)"
    return [name, row["class"], shape, f"{row['parameters']:,}", row["trainable"], groups]


def _group_cells(row: Row) -> list[str]:
    number, lr = ("none", "-") if row["group"] is None else (str(row["group"]), f"{row['lr']:.2e}")
    return [number, f"{row['parameters']:,}", f"{row['trainable']:,}", lr]


def _number(value: Any) -> str:
    """Return a hyper-parameter as text, a float or a tensor of one number without its noise."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_number, value))})"
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    return f"{number:g}" if isinstance(number, float) else str(number)


def _aligned(table: Sequence[Sequence[str]], left: int) -> list[str]:
    """Return lines of columns, the first `left` aligned to the left, cut to fit the width."""
    table = [[_cut(row[0], 60), *(_cut(cell, 24) for cell in row[1:])] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    room = max(12, WIDTH - sum(widths[1:]) - 2 * len(widths[1:]))
    widths[0] = min(widths[0], room)
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(
                zip([_cut(row[0], room), *row[1:]], widths, strict=True)
            )
        ).rstrip()
        for row in table
    ]


def _cut(text: str, width: int) -> str:
    """Return the end of a text that is too long: there names differ."""
    return text if len(text) <= width else "..." + text[3 - width :]
