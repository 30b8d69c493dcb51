"""Changes to one instance that can be undone: hooks and replaced methods."""

import functools
from collections.abc import Callable
from typing import Any


class InstanceChanges:
    """Hooks on modules, and replaced methods of instances. No class is changed.

    Attributes:
        handles: handles of the hooks.
    """

    def __init__(self) -> None:
        self.handles: list[Any] = []
        self._replaced: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, method: Callable[..., Any]) -> None:
        """Replace `owner.name(...)` by `method(before, ...)`, with the old method as `before`, for this instance."""
        before = getattr(owner, name)

        @functools.wraps(before)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return method(before, *args, **kwargs)

        self._replaced.append((owner, name, owner.__dict__.get(name)))
        owner.__dict__[name] = replacement

    def undo(self) -> None:
        """Remove all hooks, and restore all methods."""
        for handle in self.handles:
            handle.remove()
        for owner, name, before in reversed(self._replaced):
            if before is None:
                del owner.__dict__[name]  # the method of the class is visible again
            else:
                owner.__dict__[name] = before
