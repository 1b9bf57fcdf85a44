"""Surfaces that progress is shown on: a notebook, a terminal, a log, or none.

Each shows a table that grows by a row for every epoch, and while something runs, how far it is.
`ONECYCLE_PROGRESS` in the environment chooses one; "auto", the default, looks where it is.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from html import escape
from importlib.util import find_spec
from typing import Any, ClassVar

from onecycle import checks
from onecycle.plot import in_notebook
from onecycle.tables import html_table

VARIABLE = "ONECYCLE_PROGRESS"
EMPTY = {"text/html": "", "text/plain": ""}
TERMINAL_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
NOTEBOOK_BAR = "{desc} {bar} {n_fmt}/{total_fmt} [{remaining}, {rate_fmt}{postfix}]"
Row = Mapping[str, Any]


class Surface:
    """Shows nothing; the base of the others."""

    refresh: ClassVar[float] = float("inf")  # seconds between two updates of the bar

    def begin(self) -> None:
        """Begin a new table."""

    def row(self, row: Row) -> None:
        """Add a row to the table."""

    def open(self, label: str, total: int) -> None:
        """Show a bar of `total` batches in the place of an earlier one."""

    def move(self, done: int, loss: str, lr: str, left: float | None) -> None:
        """Move the bar to `done` batches; the run has `left` seconds to go, if that is known."""
        self.at(done, f"loss {loss}, lr {lr}, run {_left(left)} left")

    def at(self, done: int, text: str = "") -> None:
        """Move the bar to `done` batches, with a text behind it."""

    def line(self, text: str) -> None:
        """Show a line of text, where lines are shown."""

    def end(self) -> None:
        """Leave the finished table, and no bar."""


class Terminal(Surface):
    """A line of tqdm on stderr while an epoch runs, an aligned table on stdout."""

    refresh = 0.1

    def __init__(self) -> None:
        self._names: list[str] = []
        self._tqdm: Any = None

    def begin(self) -> None:
        """Begin a new table."""
        self._names = []

    def row(self, row: Row) -> None:
        """Print a row, under a header when the columns are new."""
        self.end()
        for line in table_lines(row, self._names):
            print(line, flush=True)
        self._names = list(row)

    def line(self, text: str) -> None:
        """Print it."""
        print(text, flush=True)

    def open(self, label: str, total: int) -> None:
        """Show tqdm's line."""
        from tqdm import tqdm

        self.end()
        self._tqdm = tqdm(
            desc=label,
            total=total,
            leave=False,
            mininterval=0.0,
            dynamic_ncols=True,
            bar_format=TERMINAL_BAR,
        )

    def at(self, done: int, text: str = "") -> None:
        """Move it."""
        if self._tqdm is not None:
            self._tqdm.set_postfix_str(text, refresh=False)
            _set(self._tqdm, done)

    def end(self) -> None:
        """Clear the line."""
        if self._tqdm is not None:
            self._tqdm.close()
            self._tqdm = None


class Log(Terminal):
    """Lines only: one for every epoch, and at most one a minute in between."""

    refresh = 60.0

    def __init__(self) -> None:
        super().__init__()
        self._label, self._total = "", 0

    def open(self, label: str, total: int) -> None:
        """Note what is running."""
        self._label, self._total = label, total

    def at(self, done: int, text: str = "") -> None:
        """Print how far it is."""
        print(f"{self._label}: {done}/{self._total}" + (text and f", {text}"), flush=True)


class Notebook(Surface):
    """An HTML table that is updated in place, with a bar beneath while something runs.

    What stays in the notebook is the table, as static HTML. Where ipywidgets is installed the bar
    is tqdm's, elsewhere plain HTML; no other output of the cell is touched. The bar leaves the
    learning rate to the table, or it would be too long for a line.
    """

    refresh = 0.25

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._table: Any = None
        self._bar: Any = None
        self._tqdm: Any = None
        self._label, self._total = "", 0
        self._opened = self._next = 0.0

    def begin(self) -> None:
        """Take the table's place in the cell that runs now."""
        self._table = show(EMPTY, None)

    def row(self, row: Row) -> None:
        """Show the table with one more row; when epochs are very short, with several at once."""
        self._rows.append(dict(row))
        if time.monotonic() >= self._next:
            self._show_table()

    def line(self, text: str) -> None:
        """Print it."""
        print(text)

    def open(self, label: str, total: int) -> None:
        """Show a bar beneath the table."""
        self._label, self._total, self._opened = label, total, time.monotonic()
        if self._tqdm is not None:
            self._tqdm.set_description(label, refresh=False)
            self._tqdm.reset(total)
        elif self._bar is None and find_spec("ipywidgets") is not None:
            from tqdm.notebook import tqdm

            options: dict[str, Any] = {"display": False, "bar_format": NOTEBOOK_BAR}
            self._tqdm = tqdm(desc=label, total=total, mininterval=0.0, **options)
            # Else the text is squeezed into a column and breaks, and the bar changes its width.
            self._tqdm.container.layout.width = "100%"
            for text in self._tqdm.container.children[::2]:
                text.layout.flex = "0 0 auto"
            self._bar = show(self._tqdm.container, None)
        elif self._bar is None:
            self._bar = show(self._html_bar(0, ""), None)

    def move(self, done: int, loss: str, lr: str, left: float | None) -> None:  # noqa: ARG002
        """Move the bar."""
        self.at(done, f"loss {loss}, run {_left(left)} left")

    def at(self, done: int, text: str = "") -> None:
        """Move the bar, with a text behind it."""
        if self._tqdm is not None:
            self._tqdm.set_postfix_str(text, refresh=False)
            _set(self._tqdm, done)
        elif self._bar is not None:
            seconds = max(time.monotonic() - self._opened, 1e-9)
            rest = clock(seconds / max(done, 1) * (self._total - done))
            speed = ", ".join(filter(None, [f"{done / seconds:.2f}it/s", text]))
            times = f"[{clock(seconds)}<{rest}, {speed}]"
            show(self._html_bar(done, times), self._bar)

    def end(self) -> None:
        """Leave the finished table, and nothing of the bar, neither on the page nor in the file."""
        if self._rows:
            self._show_table()
        if self._tqdm is not None:
            self._tqdm.container.close()
        if self._bar is not None:
            show(EMPTY, self._bar)
        self._tqdm = self._bar = None

    def _show_table(self) -> None:
        text = {"text/html": history_html(self._rows), "text/plain": text_table(self._rows)}
        self._table = show(text, self._table)
        self._next = time.monotonic() + self.refresh

    def _html_bar(self, done: int, text: str) -> dict[str, str]:
        counts = f"{done}/{self._total}"
        bar = f'<progress value="{done}" max="{self._total}"></progress>'
        return {
            "text/html": f'<div style="white-space: nowrap">{bar} '
            f"{escape(self._label)}: {counts} {escape(text)}</div>",
            "text/plain": f"{self._label}: {counts} {text}",
        }


SURFACES: dict[str, type[Surface]] = {
    "notebook": Notebook,
    "terminal": Terminal,
    "log": Log,
    "off": Surface,
}


def surface() -> Surface:
    """Return the surface that fits here, or that `ONECYCLE_PROGRESS` asks for.

    Processes of a distributed run beside the first show nothing.

    Raises:
        ValueError: the variable has another value; or "notebook" without IPython.
    """
    name = os.environ.get(VARIABLE) or "auto"
    checks.choice(VARIABLE, name, ("auto", *SURFACES))
    if os.environ.get("RANK", "0") != "0":
        return Surface()
    if name == "notebook" and find_spec("IPython") is None:
        raise ValueError(f"{VARIABLE}=notebook needs IPython, which is not installed")
    if name != "auto":
        return SURFACES[name]()
    if in_notebook():
        return Notebook()
    terminal = sys.stderr is not None and sys.stderr.isatty()  # pythonw has no stderr
    return Terminal() if terminal else Log()


def table_lines(row: Row, before: list[str]) -> list[str]:
    """Return the line of `row`, after a header when its columns are not those of `before`."""
    widths = [5 if name in ("epoch", "seconds") else max(len(name), 10) for name in row]
    cells = [cell(name, value) for name, value in row.items()]
    lines = [[head(name) for name in row], cells] if list(row) != before else [cells]
    return ["  ".join(t.rjust(w) for t, w in zip(line, widths, strict=True)) for line in lines]


def text_table(rows: list[Row]) -> str:
    """Return an aligned table."""
    names: list[str] = []
    lines: list[str] = []
    for row in rows:
        lines += table_lines(row, names)
        names = list(row)
    return "\n".join(lines)


def history_html(rows: list[Row]) -> str:
    """Return a table for a page; a row that lacks a column has an empty cell there."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[cell(name, row[name]) if name in row else "" for name in names] for row in rows]
    return html_table(lines, [head(name) for name in names], kind="onecycle")


def head(name: str) -> str:
    """Return the heading of a column of the history."""
    return "time" if name == "seconds" else name


def cell(name: str, value: Any) -> str:
    """Return a value of the history as it is shown.

    >>> cell("lr", 0.01), cell("seconds", 65.2), cell("accuracy", 0.5), cell("valid_loss", 2e-8)
    ('1.00e-02', '01:05', '0.500000', '2.0000e-08')
    """
    if name == "seconds":
        return clock(value)
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    if not isinstance(number, float):
        return str(number)
    if name == "lr":
        return f"{number:.2e}"
    return f"{number:.6f}" if number == 0 or 1e-4 <= abs(number) < 1e6 else f"{number:.4e}"


def clock(seconds: float) -> str:
    """Return minutes and seconds, with hours when there are any.

    >>> clock(3.9), clock(3725)
    ('00:03', '1:02:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def _left(seconds: float | None) -> str:
    return "?" if seconds is None else clock(seconds)


def _set(bar: Any, done: int) -> None:
    """Show `done` now: `update` would wait until as many batches came as did once before."""
    bar.n = done
    bar.refresh()


def show(content: Any, handle: Any) -> Any:
    """Show `content` in a new place, or in the place of `handle`; return the handle."""
    from IPython.display import display

    raw = isinstance(content, dict)
    if handle is None:
        return display(content, raw=raw, display_id=True)  # type: ignore[no-untyped-call]
    handle.update(content, raw=raw)
    return handle
