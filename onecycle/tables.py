"""Tables for a page, for pandas and for JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, overload


def html_table(rows: Iterable[Sequence[Any]], head: Sequence[str] = (), kind: str = "") -> str:
    """Return an HTML table; everything is escaped, the first cell of a row is its header.

    Args:
        rows: lines of cells.
        head: names of the columns; none makes no header.
        kind: class of the table, for those who look for it.

    >>> print(html_table([["<i>", 1]], ["a", "b"]), end="")
    <table><thead><tr><th scope="col">a</th><th scope="col">b</th></tr></thead>
    <tbody><tr><th scope="row">&lt;i&gt;</th><td>1</td></tr>
    </tbody></table>
    """
    opening = f'<table class="{escape(kind)}">' if kind else "<table>"
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    top = f"<thead><tr>{names}</tr></thead>\n" if head else ""
    body = "".join(
        f'<tr><th scope="row">{escape(str(first))}</th>'
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in rest)
        + "</tr>\n"
        for first, *rest in rows
    )
    return f"{opening}{top}<tbody>{body}</tbody></table>\n"


class Table(Sequence[Mapping[str, Any]]):
    """Rows that a terminal shows as text, a notebook as a table and pandas takes as a DataFrame.

    Args:
        rows: a dict for each, with the same keys; nan is shown as nothing.

    >>> Table([{"class": "cat", "recall": 0.5}, {"class": "dog", "recall": 1.0}])
    class  recall
      cat     0.5
      dog       1
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.rows = [dict(row) for row in rows]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Table: ...

    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | Table:
        """Return a row, or a table of some."""
        return Table(self.rows[index]) if isinstance(index, slice) else self.rows[index]

    def to_pandas(self) -> Any:
        """Return the rows as a pandas DataFrame.

        Raises:
            ImportError: pandas is not installed.
        """
        return data_frame(self.rows)

    def __repr__(self) -> str:
        """Return the columns as aligned text."""
        lines = [self._head, *self._cells]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        )

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        return html_table(self._cells, self._head, kind="onecycle")

    @property
    def _head(self) -> list[str]:
        return list(self.rows[0]) if self.rows else []

    @property
    def _cells(self) -> list[list[str]]:
        return [[_shown(value) for value in row.values()] for row in self.rows]


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.4g}"


def data_frame(table: Any) -> Any:
    """Return rows, or a dict of columns, as a pandas DataFrame.

    Raises:
        ImportError: pandas is not installed.

    >>> data_frame([{"a": 1}, {"a": 2}])["a"].tolist()
    [1, 2]
    """
    try:
        import pandas as pd
    except ImportError:
        raise ImportError("to_pandas needs pandas: pip install pandas") from None
    return pd.DataFrame(table)


def finite(value: Any) -> Any:
    """Return `value` as plain numbers, with None for every one that JSON cannot hold.

    >>> finite({"loss": math.nan, "moms": (0.95, 0.85)})
    {'loss': None, 'moms': [0.95, 0.85]}
    """
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
