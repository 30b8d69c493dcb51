"""Tables of strings, for a terminal and for Markdown alike."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from adatp.tables.comparison import print_whole

Rows = list[list[str]]  # the head, and what is below it


def print_tables(tables: Sequence[tuple[str, Rows]]) -> None:
    """Print each with its title, as wide as it is."""
    for title, (head, *rows) in tables:
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(head[0], no_wrap=True)
        for name in head[1:]:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        print_whole(table)


def markdown_tables(tables: Sequence[tuple[str, Rows]]) -> str:
    """Each with its title, in Markdown."""
    parts = []
    for title, (head, *rows) in tables:
        lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
        parts.append(f"**{title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts)
