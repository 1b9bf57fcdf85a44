"""What a model is made of and what trains it: a row for each module, then the totals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onecycle import batch as batches
from onecycle import optimizers, together
from onecycle.evaluation import Evaluator
from onecycle.losses import infer_loss
from onecycle.tables import html_table

WIDTH = 100
HEAD = ["name", "class", "output shape", "parameters", "trainable", "group"]
GROUP_HEAD = ["group", "parameters", "trainable", "lr"]
NO_HYPER = {
    "fused",
    "foreach",
    "params",
    "param_names",
    "layer_group",
    "decay",
    "initial_lr",
    "decoupled_weight_decay",
}
Row = dict[str, Any]
Table = list[list[str]]


@dataclass(frozen=True, repr=False)
class Summary:
    """The result of `Learner.summary`: plain data that prints as tables, in a notebook as HTML.

    Attributes:
        rows: a dict for each module without children and each that owns parameters beside theirs,
            in the order they start to run: name, class, shape (of the first tensor of its first
            output; None where it did not run), parameters (one that several modules share counts in
            the first), trainable ("yes", "no", "partly", "" without parameters), groups.
        groups: group, parameters, trainable and lr of each layer group; with None for group and lr
            what the optimizer does not hold, if anything.
        totals: parameters, trainable and frozen, each parameter once.
        setup: loss, optimizer and device, in words.
    """

    rows: list[Row]
    groups: list[Row]
    totals: dict[str, int]
    setup: dict[str, str]

    def __repr__(self) -> str:
        """Return aligned tables, within 100 columns but for the optimizer's line."""
        modules, groups, setup = self._tables()
        blocks = [_aligned(modules, left=3), _aligned(groups, left=0), _aligned(setup, left=2)]
        return "\n\n".join(blocks)

    def _repr_html_(self) -> str:
        modules, groups, setup = self._tables()
        top = html_table(modules[1:], modules[0]) + html_table(groups[1:], groups[0])
        return top + html_table(setup)

    def _tables(self) -> tuple[Table, Table, Table]:
        setup = {"parameters": count_text(self.totals), **self.setup}
        return (
            [HEAD, *map(_cells, self.rows)],
            [GROUP_HEAD, *map(_group_cells, self.groups)],
            [[name, text] for name, text in setup.items()],
        )


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
    >>> from onecycle.network import Network
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> evaluator = Evaluator(Network(model, torch.device("cpu")), [model])
    >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> summary = summarize(evaluator, digits().train, opt, None)
    >>> [(row["class"], row["shape"], row["parameters"]) for row in summary.rows]
    [('Flatten', (64, 64), 0), ('Linear', (64, 10), 650)]
    """
    model = evaluator.model
    with evaluator.kept(loader):
        batch = next(iter(loader), None)
        if batch is None:
            raise ValueError("data: train yielded no batch, there is nothing to show the model")
        inputs, target = batches.split(batches.to_device(batch, evaluator.device))
        # A compiled model would be compiled anew for the hooks.
        with _watched(model) as shapes, torch.compiler.set_stance("force_eager"):
            evaluator.predict(inputs)
    setup = {
        "loss": _loss_text(loss_func, target),
        "optimizer": optimizer_text(opt),
        "device": str(evaluator.device),
    }
    rows, groups = _rows(model, shapes, optimizers.grouped(opt)), _groups(model, opt)
    return Summary(rows, groups, counts(model.parameters()), setup)


def counts(parameters: Iterable[Tensor]) -> dict[str, int]:
    """Return how many numbers `parameters` hold: in all, trainable and frozen.

    >>> counts(nn.Linear(3, 2).parameters())
    {'parameters': 8, 'trainable': 8, 'frozen': 0}
    """
    sizes = [(p.numel(), p.requires_grad) for p in parameters]
    total, trainable = sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns)
    return {"parameters": total, "trainable": trainable, "frozen": total - trainable}


def count_text(totals: Mapping[str, int]) -> str:
    """Return in words what `counts` returned.

    >>> count_text({"parameters": 2000, "trainable": 1500, "frozen": 500})
    '2,000 (trainable 1,500, frozen 500)'
    """
    return "{parameters:,} (trainable {trainable:,}, frozen {frozen:,})".format(**totals)


def optimizer_text(opt: torch.optim.Optimizer) -> str:
    """Return class and hyper-parameters; what differs between groups with each of its values.

    >>> optimizer_text(optimizers.build(nn.Linear(2, 1), torch.optim.SGD, wd=0.1))
    'SGD(lr=0.001, momentum=0, dampening=0, weight_decay=0.1 or 0)'
    """
    return " + ".join(map(_member_text, together.members(opt)))


def _member_text(opt: torch.optim.Optimizer) -> str:
    values: dict[str, dict[str, None]] = {}
    for group in opt.param_groups:
        for name, value in group.items():
            if name not in NO_HYPER and value is not None and value is not False:
                values.setdefault(name, {})[_number(value)] = None
    given = [f"{name}={' or '.join(texts)}" for name, texts in values.items()]
    return f"{type(opt).__name__}({', '.join(given)})"


def name_of(function: Any) -> str:
    """Return the name of a function, that of the class of any other object.

    >>> name_of(nn.CrossEntropyLoss()), name_of(nn.functional.mse_loss)
    ('CrossEntropyLoss', 'mse_loss')
    """
    function = getattr(function, "func", function)
    return str(getattr(function, "__name__", type(function).__name__))


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[int, Any]]:
    """Give a dict that fills, as modules start, with the shape of the first output of each."""
    shapes: dict[int, Any] = {}

    def begin(module: nn.Module, _: Any) -> None:
        shapes.setdefault(id(module), None)

    def end(module: nn.Module, _: Any, output: Any) -> None:
        shapes[id(module)] = shapes[id(module)] or next(_shapes(output), None)

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


def _rows(model: nn.Module, shapes: dict[int, Any], members: list[list[Tensor]]) -> list[Row]:
    """Return the rows of the modules that ran, in their order, then of those that did not."""
    listed = {id(m): (name, m) for name, m in model.named_modules() if _own(m) or _is_leaf(m)}
    ran = [key for key in shapes if key in listed]
    groups = {id(p): i for i, parameters in enumerate(members) for p in parameters}
    counted: set[int] = set()
    rows = []
    for key in dict.fromkeys([*ran, *listed]):
        name, module = listed[key]
        own = _own(module)
        rows.append(
            {
                "name": name,
                "class": type(module).__name__,
                "shape": shapes.get(key),
                "parameters": sum(p.numel() for p in own if id(p) not in counted),
                "trainable": _trainable(own),
                "groups": sorted({groups[id(p)] for p in own if id(p) in groups}),
            }
        )
        counted.update(map(id, own))
    return rows


def _groups(model: nn.Module, opt: torch.optim.Optimizer) -> list[Row]:
    members, rates = optimizers.grouped(opt), optimizers.current(opt, "lr")
    held = {id(p) for parameters in members for p in parameters}
    rest = [p for p in model.parameters() if id(p) not in held]
    rows: list[Row] = [
        {"group": i, **counts(members[i]), "lr": rate} for i, rate in enumerate(rates)
    ]
    return [*rows, {"group": None, **counts(rest), "lr": None}] if rest else rows


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _trainable(parameters: list[nn.Parameter]) -> str:
    learning = tuple({p.requires_grad for p in parameters})
    return {(): "", (True,): "yes", (False,): "no"}.get(learning, "partly")


def _loss_text(loss_func: Any, target: Any) -> str:
    if loss_func is not None:
        return name_of(loss_func)
    try:
        return f"{name_of(infer_loss(target))} (inferred)"
    except ValueError:
        return "none, and the target does not tell which"


def _cells(row: Row) -> list[str]:
    shape = "-" if row["shape"] is None else " x ".join(map(str, row["shape"])) or "scalar"
    kind = row["class"] if len(row["class"]) <= 20 else row["class"][:17] + "..."
    name, groups = row["name"] or "(model)", ", ".join(map(str, row["groups"]))
    return [name, kind, shape, f"{row['parameters']:,}", row["trainable"], groups]


def _group_cells(row: Row) -> list[str]:
    number, lr = ("none", "-") if row["group"] is None else (str(row["group"]), f"{row['lr']:.2e}")
    return [number, f"{row['parameters']:,}", f"{row['trainable']:,}", lr]


def _number(value: Any) -> str:
    """Return a hyper-parameter as text, a float or a tensor of one number without its noise."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_number, value))})"
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    return f"{number:g}" if isinstance(number, float) else str(number)


def _aligned(table: Table, left: int) -> str:
    """Return lines of columns, `left` of them aligned to the left; long names lose their start."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    room = max(12, WIDTH - sum(widths[1:]) - 2 * len(widths[1:]))
    widths[0] = min(widths[0], room)
    sides = [f"{'<' if i < left else '>'}{width}" for i, width in enumerate(widths)]
    lines = [
        "  ".join(
            map(format, [first if len(first) <= room else "..." + first[3 - room :], *rest], sides)
        )
        for first, *rest in table
    ]
    return "\n".join(line.rstrip() for line in lines)
