"""What a reader relies on: public names, the direction of imports, a light import, no asserts."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import onecycle

PACKAGE = Path(onecycle.__file__).parent
LAYERS = [
    {"notes", "signals"},
    {
        "checks",
        "batch",
        "smoothing",
        "generators",
        "interrupts",
        "files",
        "plot",
        "tables",
        "shortcuts",
        "picking",
        "recompute",
        "parts",
        "extras",
    },
    {"distributed", "together", "shards"},
    {"snapshot", "schedules", "optimizers", "metrics", "series", "suggest"}
    | {"models", "losses", "display", "plot_lr_find", "network", "recorded"}
    | {
        "budget",
        "plot_epoch_find",
        "plot_interpretation",
        "labels",
        "highest",
        "shard_files",
        "launch",
    },
    {"checkpoint", "callback", "data", "freezing", "plot_activations", "found"}
    | {"epochs_found", "monitor", "culprit", "muon", "rungs"},
    {"guard", "state", "preflight", "averaging", "readout", "evaluation", "tracking"},
    {"interpretation", "tta", "exporting"},
    {"step", "loop"},
    {"callbacks", "summary"},
    {"plan", "report", "finder", "trunk"},
    {"resuming", "extension", "epochs_finder", "hints", "arguments"},
    {"trainer"},
    {"tuning"},
    {"learner"},
    {"__main__"},
]
# A package's parts may know each other; files of callbacks may not.
FAMILIES = {"data", "schedules", "suggest", "tuning"}


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def name_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts


def layer(name):
    return next(i for i, names in enumerate(LAYERS) if name in names)


def imports(path):
    """The modules of the package that a file imports when it runs, not those for types alone."""
    tree = ast.parse(path.read_text())
    typing = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n)]
    skipped = {id(child) for block in typing for child in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "onecycle":
            yield from ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("onecycle."):
            yield tuple(node.module.split(".")[1:])


@pytest.mark.parametrize("path", modules(), ids=lambda path: "/".join(name_of(path)))
def test_imports_point_down(path):
    name = name_of(path)
    for other in imports(path):
        assert (PACKAGE / other[0]).is_dir() or (PACKAGE / f"{other[0]}.py").is_file()
        if other[0] == name[0]:
            assert name[0] in FAMILIES, f"{name} imports its sibling {other}"
        else:
            assert layer(other[0]) < layer(name[0])


def test_public_names():
    assert sorted(onecycle.__all__) == [
        "ActivationStats",
        "BnFreeze",
        "CSVLogger",
        "Callback",
        "CancelBatch",
        "CancelEpoch",
        "CancelTrain",
        "Checkpoint",
        "CutMix",
        "DataLoaders",
        "EMA",
        "EarlyStopping",
        "EpochFind",
        "GradNorm",
        "Interpretation",
        "JSONLLogger",
        "LRFind",
        "LRFinder",
        "Learner",
        "LivePlot",
        "MLflowLogger",
        "MixUp",
        "OneCycleScheduler",
        "OptunaReport",
        "ParamScheduler",
        "Profiler",
        "ProgressBar",
        "RayReport",
        "Recorder",
        "ReduceLROnPlateau",
        "SWA",
        "SaveBest",
        "ScheduleFree",
        "Search",
        "TensorBoardLogger",
        "TorchScheduler",
        "WandbLogger",
        "accuracy",
        "data",
        "error_rate",
        "launch",
        "load_model",
        "mae",
        "metrics",
        "models",
        "mse",
        "muon_split",
        "rmse",
        "schedules",
        "suggest",
        "top_k_accuracy",
    ]


@pytest.mark.parametrize("name", onecycle.__all__)
def test_every_public_name_is_documented(name):
    thing = getattr(onecycle, name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        methods = [m for n, m in vars(thing).items() if not n.startswith("_") and callable(m)]
        assert all(method.__doc__ for method in methods)


def signature(function):
    return [
        name if p.default is p.empty else f"{name}={p.default!r}"
        for name, p in inspect.signature(function).parameters.items()
    ]


def test_the_signatures_that_notebooks_use():
    assert signature(onecycle.Learner.fit_one_cycle) == [
        "self",
        "epochs=None",
        "max_lr=None",
        "moms=(0.95, 0.85)",
        "div_factor=25.0",
        "pct_start=0.3",
        "final_div=None",
        "warmup='linear'",
        "three_phase=False",
        "wd=None",
        "callbacks=()",
        "tot_epochs=None",
        "start_epoch=None",
        "minutes=None",
        "keep_trunk=True",
    ]
    assert signature(onecycle.Learner.lr_find) == [
        "self",
        "start_lr=1e-07",
        "end_lr=10.0",
        "num_it=100",
        "stop_div=True",
        "method='sweep'",
        "n_sweeps=1",
        "refine=True",
        "wd=None",
        "moms=None",
        "show_plot=True",
    ]
    names = ["data", "model", "loss_func=None", f"opt_func={torch.optim.AdamW!r}"]
    assert signature(onecycle.Learner)[:4] == names


def test_importing_the_package_loads_nothing_heavy():
    heavy = "matplotlib torchvision tqdm pandas IPython PIL"
    code = f"import sys, onecycle; print([m for m in '{heavy}'.split() if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    plain = code.replace("onecycle", "torch")
    base = subprocess.run([sys.executable, "-c", plain], capture_output=True, text=True, check=True)
    assert run.stdout == base.stdout


def test_the_package_validates_by_errors_not_by_assert():
    for path in modules():
        assert not [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Assert)]


def test_a_learner_is_collected_once_dropped(data):
    import gc
    import weakref

    from helpers import mlp

    learn = onecycle.Learner(data, mlp())
    learn.lr_find(num_it=10)
    learn.fit_one_cycle(1, 0.01)
    reference = weakref.ref(learn)
    del learn
    gc.collect()
    assert reference() is None
