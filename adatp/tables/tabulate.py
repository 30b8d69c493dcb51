"""Tables of strings for a terminal and for Markdown."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

Row = list[str] | None  # cells, in Rich's markup; None begins a new section
Rows = list[list[str]]  # the head, and the rows below it


def print_table(head: Sequence[str], rows: Sequence[Row], *, title: str | None = None, left: int = 1) -> None:
    """Print a table at its full width. No digit is cut off on a narrow terminal or in a pipe.

    Args:
        head: names of the columns.
        rows: rows below the head.
        title: title above the table.
        left: number of columns that are aligned to the left; the others hold numbers and are aligned to the right.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=True)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*row)
    out = Console(highlight=False)
    out.width = max(out.width, Console(width=1000).measure(table).maximum)
    out.print(table)


def print_tables(tables: Sequence[tuple[str, Rows]]) -> None:
    """Print each table with its title."""
    for title, (head, *rows) in tables:
        print_table(head, rows, title=title)


def markdown_tables(tables: Sequence[tuple[str, Rows]]) -> str:
    """Return all tables with their titles, in Markdown."""
    return "\n\n".join(f"**{title}**\n\n{markdown_table(rows)}" for title, rows in tables)


def markdown_table(rows: Rows) -> str:
    """Return a table without a title, in Markdown; the first row is the head."""
    head, *rest = rows
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rest]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
