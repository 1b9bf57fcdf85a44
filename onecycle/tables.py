"""Tables for a page, for pandas and for JSON."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


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
