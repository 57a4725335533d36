"""Tables for a terminal: fitted to its width without breaking a word or a number, else one record a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: Longer words, such as paths, may be broken: they would take the width of all other columns.
LONGEST_WORD = 24

#: What stands between two columns: one space of padding and the box's own.
_GAP = 2

_NUMBER_STARTS = frozenset("–-+≤≥.0123456789")


def is_numeric(cells: Sequence[str]) -> bool:
    """Whether a column holds numbers only; a dash is a number that was not measured."""
    return bool(cells) and all(cell[:1] in _NUMBER_STARTS for cell in cells)


def column_widths(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """The width of each column in a table of at most ``width`` characters.

    A column is never narrower than the longest word of its header, its longest number, or the longest word of its
    text up to ``LONGEST_WORD``.

    Args:
        columns: The headers.
        rows: The cells as they are printed, as many in a row as there are headers.
        width: The width of the terminal, in characters.

    Returns:
        One width a column, or None where the narrowest table is still too wide.
    """
    from rich.cells import cell_len

    def longest_word(texts: Sequence[str]) -> int:
        return max((cell_len(word) for text in texts for word in text.split()), default=1)

    widths, natural = [], []
    for position, column in enumerate(columns):
        cells = [row[position] for row in rows]
        longest = max((cell_len(line) for cell in cells for line in cell.splitlines()), default=0)
        needed = longest if is_numeric(cells) else min(longest_word(cells), LONGEST_WORD)
        widths.append(max(needed, longest_word([column])))
        natural.append(max(longest, cell_len(column), widths[-1]))
    spare = width - sum(widths) - _GAP * (len(columns) - 1)
    if spare < 0:
        return None
    while spare and widths != natural:
        # The narrowest column that wants more grows first, so that one long text does not squeeze the others.
        grown = min((i for i in range(len(widths)) if widths[i] < natural[i]), key=widths.__getitem__)
        widths[grown] += 1
        spare -= 1
    return widths


def draw(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, styles: Mapping[str, str] | None = None
) -> str:
    """The table as text.

    Args:
        columns: The headers.
        rows: The cells as they are printed.
        width: The width of the terminal, in characters; None: as wide as the cells.
        styles: Colours of cells by their text.

    Returns:
        Lines without spaces at their ends: a table, or one record a row where the table does not fit.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = styles or {}
    widths = None if width is None else column_widths(columns, rows, width)
    console = Console(width=width or 1000, highlight=False)
    if width is not None and widths is None:
        drawn = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0))
        drawn.add_column(style="bold", overflow="fold")
        drawn.add_column(overflow="fold")
        for number, row in enumerate(rows):
            if number:
                drawn.add_row()
            for column, value in zip(columns, row, strict=True):
                drawn.add_row(column, Text(value, style=styles.get(value, "")))
    else:
        padding = (0, 1) if widths is None else (0, 1, 0, 0)
        drawn = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False, padding=padding)
        for position, column in enumerate(columns):
            drawn.add_column(
                column,
                justify="right" if is_numeric([row[position] for row in rows]) else "left",
                overflow="fold",
                no_wrap=widths is None,
                width=None if widths is None else widths[position],
            )
        for row in rows:
            drawn.add_row(*(Text(value, style=styles.get(value, "")) for value in row))
    with console.capture() as captured:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n"))
