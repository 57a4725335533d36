"""Short HTML for notebooks: a title and a table of facts."""

from __future__ import annotations

import html
from collections.abc import Sequence


def html_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as notebooks show it. Everything is escaped: names in a bundle come from others.

    Args:
        title: What stands above it.
        columns: The heads.
        rows: The cells; ``None`` is a dash.
    """

    def cell(value: object, tag: str) -> str:
        text = "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
        return f'<{tag} style="text-align:left">{html.escape(text)}</{tag}>'

    head = "".join(cell(column, "th") for column in columns)
    body = "".join(f"<tr>{''.join(cell(value, 'td') for value in row)}</tr>" for row in rows)
    return f"<div><b>{html.escape(title)}</b><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
