"""The one way of printing tables: strings, for a terminal and for Markdown alike."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

Row = list[str] | None  # cells, in Rich's markup; None begins a new section
Rows = list[list[str]]  # the head, and what is below it


def print_table(head: Sequence[str], rows: Sequence[Row], *, title: str | None = None, left: int = 1) -> None:
    """Print a table as wide as it is: on a narrow terminal, and in a pipe, no digit is cut off.

    Args:
        head: names of the columns.
        rows: what is below them.
        title: above the table.
        left: columns that are aligned to the left; the others, numbers, to the right.
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
    """Print each with its title."""
    for title, (head, *rows) in tables:
        print_table(head, rows, title=title)


def markdown_tables(tables: Sequence[tuple[str, Rows]]) -> str:
    """Each with its title, in Markdown."""
    parts = []
    for title, (head, *rows) in tables:
        lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
        parts.append(f"**{title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts)
