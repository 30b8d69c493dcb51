"""The lines above tables: notes for the user, the model, and the machine."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape


def print_notes(out: Console, notes: Sequence[str]) -> None:
    """Print the notes for the user."""
    for note in notes:
        out.print(f"[yellow]note:[/] {escape(note)}")


def print_machine(out: Console, model: str, machine: dict[str, Any]) -> None:
    """Print the model and the machine that it ran on."""
    out.print(f"[bold]model[/]     {escape(model)}: {machine['dtype']}, {machine['attention']} attention")
    out.print(
        f"[bold]machine[/]   {escape(machine['processor'])}, {escape(machine['platform'])}, {machine['cores']} cores, "
        f"{machine['threads']} threads, device {escape(machine['device'])}, kernels: {machine['impl']}, "
        f"torch {machine['torch']}, transformers {machine['transformers']}"
    )
