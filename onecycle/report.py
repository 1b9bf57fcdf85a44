"""One page about a training: pictures, tables and settings in a single HTML file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from html import escape
from io import StringIO
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from onecycle import files
from onecycle.display import cell, head
from onecycle.summary import count_text, counts, name_of, optimizer_text
from onecycle.tables import html_table
from onecycle.tracking import versions

if TYPE_CHECKING:
    from onecycle.callbacks.recorder import Recorder
    from onecycle.learner import Learner

Row = dict[str, Any]
Draw = Callable[[Any], object]
LAST = ("lr", "seconds")
NO_SCORE = {"epoch", *LAST}
NO_METRIC = {"train_loss", "valid_loss", *NO_SCORE}
# Text stays text: small, found by a search, and without the ids of glyphs. Verdana is as wide as
# DejaVu Sans, for those who do not have that.
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "path.simplify_threshold": 0.5,
}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --text: #1f2328; --faint: #59636e; --line: #d1d9e0;
  --page: #ffffff; --head: #f3f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --faint: #9aa4ae; --line: #3d444d; --page: #16191d; --head: #22272e; }
}
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--page);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.75rem; border-bottom: 1px solid var(--line); text-align: right; }
th { font-weight: 600; }
.scroll { overflow: auto; width: fit-content; max-width: 100%; max-height: 29rem; }
.scroll thead th { position: sticky; top: 0; background: var(--head); }
.scroll td, .scroll th { white-space: nowrap; }
.settings th, .settings td { text-align: left; vertical-align: top; overflow-wrap: anywhere; }
.settings th { min-width: 6.5rem; overflow-wrap: normal; }
.pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.pictures figure { margin: 0; padding: 0.5rem; background: #ffffff; color: #1f2328;
  border: 1px solid var(--line); border-radius: 0.5rem; }
figcaption { font-size: 0.875rem; font-weight: 600; }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
pre { overflow: auto; font-size: 0.8125rem; }
@media print {
  body { max-width: none; padding: 0; }
  .scroll { max-height: none; overflow: visible; }
  figure, tr { break-inside: avoid; }
}
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p>$result</p>
<h2>Pictures</h2>
<div class="pictures">
$pictures</div>
<h2 id="epochs">Epochs</h2>
<div class="scroll" role="region" aria-labelledby="epochs" tabindex="0">
$epochs</div>
<h2>Fits</h2>
<div class="scroll" role="region" aria-label="Fits" tabindex="0">
$fits</div>
<h2>Settings</h2>
<div class="settings">
$settings</div>
<h2>Model</h2>
<details><summary>All modules of $model</summary>
<pre>$modules</pre>
</details>
<h2>Versions</h2>
<div class="settings">
$versions</div>
</main>
</body>
</html>
""")


def write(learn: Learner, path: files.PathLike) -> Path:
    """Write what `learn` has recorded as one HTML page without script or anything to load.

    The same history gives the same page. It names no file, folder, machine or user.

    Args:
        learn: a learner that has trained.
        path: the file; written whole or not at all.

    Raises:
        ValueError: the learner has not trained.
        OSError: the file cannot be written.
    """
    recorder = learn.recorder
    if not len(recorder.lrs) + len(recorder.history):
        raise ValueError("nothing to report: train first, by learn.fit_one_cycle(...)")
    model = type(learn.model).__name__
    page = PAGE.substitute(
        title=escape(f"Training of {model}"),
        result=escape(_result(recorder.history)),
        pictures="".join(_figure(*picture) for picture in _pictures(recorder)),
        epochs=_epochs(recorder.history),
        fits=_fits(recorder),
        settings=html_table(_settings(learn).items()),
        model=escape(model),
        modules=escape(repr(learn.model)),
        versions=html_table(versions().items()),
    )
    return files.write_text(path, page)


# ---- pictures ----------------------------------------------------------------------------------


def _pictures(recorder: Recorder) -> Iterator[tuple[str, str, Draw, int]]:
    """Yield title, what there is to see, what draws it into axes, and how many of these."""
    loss = "Training loss of every step, raw and smoothed, and validation loss of every epoch"
    yield "Losses", loss, lambda ax: recorder.plot_losses(ax=ax), 1
    names = _columns(recorder.history, NO_METRIC)
    if names:
        metrics = f"Of every epoch: {', '.join(names)}"
        yield "Metrics", metrics, lambda ax: recorder.plot_metrics(ax=ax), 1
    if np.isfinite(recorder.moms).any():
        both = "Learning rate and momentum of every step"
        yield "Schedule", both, lambda pair: recorder.plot_lr(show_moms=True, ax=pair), 2
    else:
        rate = "Learning rate of every step"
        yield "Schedule", rate, lambda ax: recorder.plot_lr(ax=ax), 1
    if np.isfinite(recorder.grad_norms).any():
        norm = "Norm of the gradients of every step, before clipping"
        yield "Gradients", norm, lambda ax: recorder.plot_grad_norm(ax=ax), 1
    if recorder.lr_find is not None:
        found = recorder.lr_find
        said = "no suggestion" if np.isnan(found) else f"the suggestion {found:.2e}"
        sweep = f"What the learning rate finder saw, with {said}"
        yield "Learning rate finder", sweep, lambda ax: recorder.plot(ax=ax), 1


def _figure(title: str, label: str, draw: Draw, panels: int) -> str:
    """Return a picture as SVG in its card."""
    from matplotlib import style
    from matplotlib.figure import Figure

    # The user's style may be made for a dark page; the name of a metric is no formula.
    special = {"svg.hashsalt": title, "text.parse_math": title != "Metrics"}
    with style.context(["default", {**STYLE, **special}]):
        figure = Figure(figsize=(6.0, 4.0), layout="constrained")
        draw(figure.subplots(panels))
        file = StringIO()
        with warnings.catch_warnings():
            # The text stays text: the reader's fonts count, not those that are here.
            warnings.filterwarnings("ignore", message="Glyph")
            figure.savefig(file, format="svg", metadata=NO_METADATA)
    svg = _bare(file.getvalue(), f'<svg role="img" aria-label="{escape(label)}"')
    return f"<figure>\n<figcaption>{escape(title)}</figcaption>\n{svg}</figure>\n"


def _bare(svg: str, start: str) -> str:
    """Return the element alone: no names to look up, no style for the whole page, no equal ids."""
    body = re.sub(r"<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    box = re.search(r' viewBox="[^"]*"', body)
    body = body[body.index(">") + 1 :].replace("xlink:href", "href")
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), body)
    return f"{start}{box[0] if box else ''}>{body}"


# ---- tables ------------------------------------------------------------------------------------


def _result(history: list[Row]) -> str:
    """Return in a sentence or two how long it took and what came of it."""
    if not history:
        return "Broken off within the first epoch."
    seconds = sum(row["seconds"] for row in history)
    time = f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.1f} seconds"
    text = f"{_many(len(history), 'epoch')} in {time}."
    last = history[-1]
    judged = [row for row in history if np.isfinite(row.get("valid_loss", np.nan))]
    best = min(judged, key=lambda row: row["valid_loss"], default=None)
    if best is last:
        return f"{text} The last epoch has the lowest validation loss: {_scores(last)}."
    if best is not None:
        text += f" Lowest validation loss in epoch {best['epoch']}: {_scores(best)}."
    return f"{text} Last epoch: {_scores(last)}."


def _scores(row: Row) -> str:
    return ", ".join(f"{name} {cell(name, row[name])}" for name in row if name not in NO_SCORE)


def _epochs(history: list[Row]) -> str:
    if not history:
        return "<p>No epoch was finished.</p>"
    names = [*_columns(history, set(LAST)), *LAST]
    rows = [[cell(name, row[name]) if name in row else "" for name in names] for row in history]
    return html_table(rows, [head(name) for name in names])


def _columns(history: list[Row], without: set[str]) -> list[str]:
    """Return the names of all columns, as not every epoch has each."""
    return [
        name for name in dict.fromkeys(n for row in history for n in row) if name not in without
    ]


def _fits(recorder: Recorder) -> str:
    borders = [*recorder.fits, (len(recorder.lrs), len(recorder.history))]
    rows = []
    for i, ((step, epoch), (next_step, next_epoch)) in enumerate(pairwise(borders), start=1):
        lrs = recorder.lrs[step:next_step]
        peak, last = (f"{lrs.max():.2e}", f"{lrs[-1]:.2e}") if len(lrs) else ("-", "-")
        rows.append([i, next_epoch - epoch, f"{next_step - step:,}", peak, last])
    return html_table(rows, ["fit", "epochs", "steps", "highest lr", "last lr"])


def _settings(learn: Learner) -> dict[str, Any]:
    step, size = learn.training_step, getattr(learn.data.train, "batch_size", None)
    per_epoch = _many(learn.batches_per_epoch, "batch", "batches")
    each = f" of {_many(size, 'sample')}" if isinstance(size, int) else ""
    return {
        "model": type(learn.model).__name__,
        "parameters": count_text(counts(learn.model.parameters())),
        "optimizer": optimizer_text(learn.opt),
        "loss": _loss(learn),
        "metrics": ", ".join(learn.metrics) or "none",
        "epoch": per_epoch + each,
        "precision": learn.network.precision,
        "accumulate": _many(step.accumulate, "batch", "batches"),
        "clip": "none" if step.clip is None else f"{step.clip:g}",
        "device": learn.device,
        "callbacks": ", ".join(map(name_of, learn.callbacks)) or "none",
    }


def _loss(learn: Learner) -> str:
    if learn.loss_func is not None:
        return name_of(learn.loss_func)
    inferred = learn._inferred  # noqa: SLF001 - nobody else has a use for it
    return "inferred from the target" if inferred is None else f"{name_of(inferred)} (inferred)"


def _many(n: int, one: str, more: str = "") -> str:
    return f"{n:,} {one}" if n == 1 else f"{n:,} {more or one + 's'}"
