"""Changes to one instance that can be undone: hooks, and methods that are replaced."""

import functools
from collections.abc import Callable
from typing import Any


class InstanceChanges:
    """Hooks on modules, and methods of instances that others stand in for. No class is touched.

    Attributes:
        handles: of the hooks.
    """

    def __init__(self) -> None:
        self.handles: list[Any] = []
        self._replaced: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, method: Callable[..., Any]) -> None:
        """Let `owner.name(...)` be `method(what it was, ...)`, on this instance alone."""
        before = getattr(owner, name)

        @functools.wraps(before)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return method(before, *args, **kwargs)

        self._replaced.append((owner, name, owner.__dict__.get(name)))
        owner.__dict__[name] = replacement

    def undo(self) -> None:
        """Leave everything as it was."""
        for handle in self.handles:
            handle.remove()
        for owner, name, before in reversed(self._replaced):
            if before is None:
                del owner.__dict__[name]  # the class's shows again
            else:
                owner.__dict__[name] = before
