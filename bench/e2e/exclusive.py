"""Times what runs within other things, each without what of it is timed as something else."""

from collections import Counter
from contextlib import ExitStack
from typing import Any
from unittest import mock

from adatp.stopwatch import now


class Exclusive(ExitStack):
    """Seconds of whatever is watched while it is open. Borders wait for the device, so nothing overlaps.

    Attributes:
        seconds: by name; all runs of it are added up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()

    def watch(self, name: str, owner: Any, method: str = "forward") -> None:
        """Time `owner.method` as `name`."""
        function = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            before, begin = self.seconds.total(), now()
            result = function(*args, **kwargs)
            self.seconds[name] += now() - begin - (self.seconds.total() - before)
            return result

        self.enter_context(mock.patch.object(owner, method, timed))
