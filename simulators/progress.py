"""Progress bars on stderr."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Report = Callable[[int, int], None]


class Bars:
    """Bars that live as long as the `with`; silent where stderr is no terminal, but for a line when each is full."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(
            *columns, TimeRemainingColumn(), console=self._console, disable=not self._console.is_terminal
        )

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def bar(self, name: str) -> Report:
        """A new bar; call the result with (done, of)."""
        task = self._progress.add_task(name, total=None)

        def report(done: int, of: int) -> None:
            self._progress.update(task, completed=done, total=of)
            if done == of and not self._console.is_terminal:
                self._console.print(f"{name}: done", highlight=False)

        return report
