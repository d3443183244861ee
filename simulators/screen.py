"""What a person sees of a demo: progress on stderr while it runs, a summary at its end."""

from __future__ import annotations

import time
from collections import deque

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from simulators.results import DemoResult
from simulators.traffic import Shown

RECENT = 2000  # impressions behind the figures shown while it runs
LINE_EVERY_S = 10.0


class Screen:
    """Progress on a terminal as a panel that stays in place, elsewhere as a line every ten seconds.

    Use it as a context manager. `stage` names what goes on, `saw` counts an impression, `state` takes the learner's.
    """

    def __init__(self, console: Console, impressions: int) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("starting", total=impressions)
        self._impressions = impressions
        self._url = ""
        self._state = ""
        self._shown = 0
        self._learned: deque[float] = deque(maxlen=RECENT)
        self._control: deque[float] = deque(maxlen=RECENT)
        self._lined_s = time.monotonic()
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def url(self, url: str) -> None:
        self._url = url
        self._line(f"live page: {url}/")

    def stage(self, name: str) -> None:
        self._progress.update(self._task, description=name)
        self._lined_s = time.monotonic()
        self._line(name)

    def state(self, version: str, versions: int, kl: float, kl_budget: float) -> None:
        budget = f" of {kl_budget:.1f}" if kl_budget else ""
        self._state = f"policy {version[:12]} (no. {versions}), KL {kl:.2f}{budget} nats"

    def saw(self, one: Shown) -> None:
        self._shown += 1
        self._control.append(one.control_rate)
        if one.source == "pool":
            self._learned.append(one.rate)
        self._progress.update(self._task, completed=self._shown)
        if not self._console.is_terminal and time.monotonic() - self._lined_s >= LINE_EVERY_S:
            self._lined_s = time.monotonic()
            self._line(f"{self._shown:,} of {self._impressions:,} impressions; {self._rates()}; {self._state}")

    def _line(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(escape(text), soft_wrap=True, highlight=False)

    def _rates(self) -> str:
        learned = sum(self._learned) / len(self._learned) if self._learned else None
        control = sum(self._control) / len(self._control) if self._control else None
        return f"click rate of late: learned {percent(learned)}, control {percent(control)}"

    def _render(self) -> RenderableType:
        lines = [self._progress.get_renderable()]
        if self._shown:
            lines.append(f"  {self._rates()}")
        if self._state:
            lines.append(f"  {escape(self._state)}")
        if self._url:
            lines.append(f"  live page: [link={self._url}/]{self._url}/[/link]")
        return Group(*lines)


def percent(rate: float | None) -> str:
    """A rate in [0, 1] as a percentage with two decimals; a dash where there is none."""
    return "-" if rate is None else f"{100 * rate:.2f} %"


def summary(result: DemoResult, requests_per_s: float, report: str | None) -> RenderableType:
    """The tables at the end of a demo: figures, then texts before and after."""
    figures = Table(title=f"Adloop demo, seed {result.seed}", show_header=False, title_justify="left")
    figures.add_column(style="bold")
    figures.add_column(justify="right")
    figures.add_row("impressions", f"{result.impressions:,}")
    figures.add_row("control click rate", percent(result.control_ctr))
    figures.add_row("learned click rate, last fifth", percent(result.learned_ctr))
    figures.add_row("oracle click rate", percent(result.oracle_ctr))
    figures.add_row("lift in realised clicks (95 % interval)", lift_text(result))
    figures.add_row("well-formed texts", percent(result.valid_share))
    figures.add_row("KL to the reference", f"{result.kl:.2f} of {result.kl_budget:.1f} nats")
    figures.add_row("seconds", f"{result.seconds:.0f}")
    figures.add_row("requests per second", f"{requests_per_s:.0f}")
    texts = Table(title="Before and after", show_lines=True, title_justify="left")
    for heading in ("campaign, segment", "before (control)", "after (learned)"):
        texts.add_column(heading, overflow="fold")
    for pair in result.texts:
        texts.add_row(
            escape(f"{pair.campaign_id}\n{pair.segment}"),
            f"{escape(pair.before)}\n[dim]{percent(pair.before_ctr)}[/dim]",
            f"{escape(pair.after)}\n[dim]{percent(pair.after_ctr)}[/dim]",
        )
    return Group(figures, texts, f"report: {escape(report)}" if report else "no report was asked for")


def lift_text(result: DemoResult) -> str:
    """The lift in words: a percentage with its interval, or that it cannot be told."""
    if result.lift is None or result.lift_interval is None:
        return "cannot be told: too few clicks"
    low, high = result.lift_interval
    return f"{100 * result.lift:+.0f} % ({100 * low:+.0f} to {100 * high:+.0f})"
