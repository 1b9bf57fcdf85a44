"""Time to 99 % on the test images of MNIST: the seconds of a whole fit that ends there or above.

    ONECYCLE_DATA=FOLDER python tests/benchmarks/train_mnist.py [--seeds 5] [--only NAME,...]

Training is planned: every contender has its number of epochs of one 1cycle, and counts with the
whole fit, from the call to its return, with a validation after every epoch. The share of the seeds
whose last accuracy is 99 % or more is beside it: below 1 the seconds mean little, and `--same`,
`--best` and `--free` try another number of epochs, batch size and rate.

The first rows have one CNN, batch 64, AdamW, single precision and `DataLoader(TensorDataset)`
(fastai its own loaders); "best" is the same CNN by each one's ordinary options; "free" has another
CNN. Reading the data and building loaders, model and trainer is told apart. A whole fit of each
warms up. Two threads.
"""

import argparse
import inspect
import itertools
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from statistics import mean
from typing import Any

import torch
from harness import aligned, chosen, machine, measured, parser, ratios, show
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from onecycle import DataLoaders, Learner, accuracy
from onecycle.data import mnist

Fit = Callable[[], float]  # trains, and returns the accuracy at the end
HAS = inspect.signature(Learner).parameters  # some of the options below may be missing yet


@dataclass(frozen=True)
class Setting:
    """How to train."""

    epochs: int = 1
    batch: int = 64
    lr: float = 1e-2
    best: bool = False  # bf16, channels last, fused, by slices where that can be had
    compiled: bool = False
    free: bool = False

    def model(self) -> nn.Module:
        """The CNN of all, or the one that is chosen freely."""
        if self.free:
            parts = [*block(1, 16, 5, 2), *block(16, 32, 5, 2), *block(32, 64, 3, 2)]
            return nn.Sequential(*parts, nn.Flatten(), nn.Linear(64 * 4 * 4, 10))
        pool = nn.MaxPool2d(2)
        parts = [*block(1, 16, 3, 2), *block(16, 32), pool, *block(32, 64), pool]
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(64 * 3 * 3, 10))


SAME = Setting()
BEST = Setting(epochs=1, batch=128, lr=1e-2, best=True)
FREE = Setting(epochs=1, batch=96, lr=1e-2, free=True)


def block(before: int, after: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """Convolution, batch norm, ReLU."""
    conv = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False)
    return [conv, nn.BatchNorm2d(after), nn.ReLU()]


@cache
def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels for training, and for the test."""
    data: Any = mnist()
    return *data.train.tensors, *data.valid.tensors


def data_sets() -> tuple[TensorDataset, TensorDataset]:
    """The same as data sets."""
    x, y, x_test, y_test = tensors()
    return TensorDataset(x, y), TensorDataset(x_test, y_test)


def loaders(s: Setting) -> tuple[Any, Any]:
    """torch's loaders of them."""
    train, test = data_sets()
    return DataLoader(train, s.batch, shuffle=True), DataLoader(test, 1024)


class Slices:
    """Whole batches by a permutation, by hand."""

    def __init__(self, x: Tensor, y: Tensor, size: int) -> None:
        self.x, self.y, self.size = x, y, size

    def __len__(self) -> int:
        return math.ceil(len(self.x) / self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for picked in torch.randperm(len(self.x)).split(self.size):
            yield self.x[picked], self.y[picked]


# ---- contenders: they prepare, and return what trains ------------------------------------------


def plain(s: Setting) -> Fit:
    """By hand."""
    train, test = loaders(s)
    model: Any = s.model()
    if s.best:
        x, y, x_test, y_test = tensors()
        train = Slices(x.contiguous(memory_format=torch.channels_last), y, s.batch)
        test = list(zip(x_test.split(1024), y_test.split(1024), strict=True))
        model = model.to(memory_format=torch.channels_last)
    opt = AdamW(model.parameters(), lr=s.lr, weight_decay=0.01, fused=s.best or None)
    schedule = OneCycleLR(opt, s.lr, epochs=s.epochs, steps_per_epoch=len(train))
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16) if s.best else nullcontext

    def fit() -> float:
        losses: list[Any] = []
        right = 0.0
        for _ in range(s.epochs):
            model.train()
            for x, y in train:
                opt.zero_grad()
                with autocast():
                    loss = cross_entropy(model(x), y)
                loss.backward()
                opt.step()
                schedule.step()
                losses.append(loss.detach() if s.best else loss.item())
            model.eval()
            with torch.no_grad(), autocast():
                right = sum((model(x).argmax(1) == y).sum().item() for x, y in test) / 10_000
        return right

    return fit


def onecycle(s: Setting) -> Fit:
    """By a Learner; the best and the free one by options alone."""
    data: Any = loaders(s)
    options: dict[str, Any] = {}
    if s.best or s.free:
        x, y, *test = tensors()
        data = DataLoaders.from_tensors(x, y, valid=tuple(test), batch_size=s.batch)
        options = {"precision": "bf16", "channels_last": True}
    if s.compiled:
        options["compile"] = True
    options = {name: value for name, value in options.items() if name in HAS}
    model = s.model()
    learn = Learner(data, model, cross_entropy, metrics=[accuracy], device="cpu", **options)

    def fit() -> float:
        with learn.no_logging():
            learn.fit_one_cycle(s.epochs, s.lr, warmup="cos")
        return float(learn.recorder.history[-1]["accuracy"])

    return fit


def fastai(s: Setting) -> Fit:
    """By fastai's learner and loaders."""
    from fastai.callback import progress, schedule  # noqa: F401 - they add to the Learner
    from fastai.callback.channelslast import ChannelsLast
    from fastai.data.core import DataLoaders as Fastai
    from fastai.learner import Learner as FastaiLearner
    from fastai.metrics import accuracy as right
    from fastai.torch_core import default_device

    default_device(False)
    train, test = data_sets()
    options: dict[str, Any] = {"bs": s.batch, "val_bs": 1024, "num_workers": 0}
    data = Fastai.from_dsets(train, test, device=torch.device("cpu"), **options)
    callbacks = [ChannelsLast()] if s.best else []  # its bf16 is for cuda only
    learn = FastaiLearner(data, s.model(), nn.CrossEntropyLoss(), metrics=right, cbs=callbacks)

    def fit() -> float:
        with ExitStack() as stack:
            stack.enter_context(learn.no_bar())
            stack.enter_context(learn.no_logging())
            learn.fit_one_cycle(s.epochs, s.lr)
        return float(learn.recorder.values[-1][-1])

    return fit


def lightning(s: Setting) -> Fit:
    """By Lightning's trainer."""
    import lightning as library

    class Module(library.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = s.model()
            if s.best:
                self.model = self.model.to(memory_format=torch.channels_last)

        def training_step(self, batch: Any, _: int) -> Tensor:
            x, y = batch
            loss = cross_entropy(self.model(x), y)
            self.log("train_loss", loss)
            return loss

        def on_validation_epoch_start(self) -> None:
            self.right = 0

        def validation_step(self, batch: Any, _: int) -> None:
            x, y = batch
            self.right += (self.model(x).argmax(1) == y).sum().item()

        def configure_optimizers(self) -> Any:
            opt = AdamW(self.parameters(), lr=s.lr, fused=s.best or None)
            steps = {"epochs": s.epochs, "steps_per_epoch": len(train)}
            schedule = {"scheduler": OneCycleLR(opt, s.lr, **steps), "interval": "step"}
            return {"optimizer": opt, "lr_scheduler": schedule}

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # that there are no workers, which are slower here
    train, test = loaders(s)
    options: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    if s.best:
        options = {"barebones": True, "precision": "bf16-mixed"}
    module = Module()
    trainer = library.Trainer(max_epochs=s.epochs, accelerator="cpu", devices=1, **options)

    def fit() -> float:
        trainer.fit(module, train, test)
        return module.right / 10_000

    return fit


CONTENDERS: dict[str, tuple[Callable[[Setting], Fit], Setting]] = {
    "plain": (plain, SAME),
    "Lightning": (lightning, SAME),
    "fastai": (fastai, SAME),
    "onecycle": (onecycle, SAME),
    "plain (best)": (plain, BEST),
    "Lightning (best)": (lightning, BEST),
    "fastai (best)": (fastai, BEST),
    "onecycle (best)": (onecycle, BEST),
    "onecycle (compiled)": (onecycle, replace(BEST, compiled=True)),
    "onecycle (free)": (onecycle, FREE),
}
NEEDS = {name: name.split(" ")[0].lower() for name in CONTENDERS if name[0] in "Lf"}
SEEDS = itertools.count()  # in each contender's process


def setting_of(name: str, args: argparse.Namespace) -> Setting:
    """The setting of a contender, as the options change it."""
    setting = CONTENDERS[name][1]
    text = args.free if setting.free else args.best if setting.best else args.same
    if not text:
        return setting
    epochs, batch, lr = text.split(",")
    return replace(setting, epochs=int(epochs), batch=int(batch), lr=float(lr))


def once(name: str, setting: Setting) -> list[float]:
    """Train with the next seed; return seconds of the fit, accuracy, seconds before."""
    prepare = CONTENDERS[name][0]
    tensors()
    torch.manual_seed(next(SEEDS))
    begin = time.perf_counter()
    fit = prepare(setting)
    start = time.perf_counter()
    right = fit()
    return [time.perf_counter() - start, right, start - begin]


def rows(runs: dict[str, Any], settings: dict[str, Setting]) -> Iterable[list[str]]:
    """The table: a row for each contender."""
    yield [
        *("", "epochs, batch", "seconds, mean", "min", "max", "ratio to plain"),
        *("accuracy %, mean", "lowest", "share at 99 %", "prepared in, s"),
    ]
    took = {name: [run[0] for run in values] for name, values in runs.items()}
    for name, values in runs.items():
        setting = settings[name]
        seconds, right, before = zip(*values, strict=True)
        yield [
            name,
            f"{setting.epochs}, {setting.batch}",
            *(f"{value:.2f}" for value in (mean(seconds), min(seconds), max(seconds))),
            f"{mean(ratios(took, name, 'plain')):.3f}",
            *(f"{100 * value:.2f}" for value in (mean(right), min(right))),
            f"{mean(value >= 0.99 for value in right):.1f}",
            f"{mean(before):.3f}",
        ]


def main() -> None:
    """Train every contender with every seed, in turns."""
    options = parser(__doc__, threads=2)
    options.add_argument("--seeds", type=int, default=5, help="rounds, each with another seed")
    for name in ("same", "best", "free"):
        text = f"other settings for the {name} rows"
        options.add_argument(f"--{name}", default="", metavar="EPOCHS,BATCH,LR", help=text)
    options.add_argument("--warmup", type=int, default=1, help="fits of each before")
    args = options.parse_args()
    args.rounds = args.seeds
    names = chosen(CONTENDERS, args.only, NEEDS)
    print(machine(args))
    missing = [name for name in ("channels_last", "compile") if name not in HAS]
    for name in missing:
        print(f"Learner has no {name} here: what is told of it is without")
    if "compile" in missing:
        names = [name for name in names if not CONTENDERS[name][1].compiled]
    start = time.perf_counter()
    tensors()
    print(f"reading MNIST takes {time.perf_counter() - start:.2f} s, once, and is in no figure")
    settings = {name: setting_of(name, args) for name in names}
    contenders: Any = {name: partial(once, name, settings[name]) for name in names}
    runs: Any = measured(contenders, args.rounds, args.threads, warmup=args.warmup)
    show("MNIST to 99 %", aligned(list(rows(runs, settings))))


if __name__ == "__main__":
    main()
