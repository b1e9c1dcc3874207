"""What the demo shows: a progress bar and a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from incident_messaging.config import MessagingBackend
from incident_messaging.demo.check import in_order
from incident_messaging.demo.witness import Witness
from incident_messaging.events import VARIANTS, IncidentEvent

__all__ = ["View"]

#: How many differences are named before the rest is only counted.
_NAMED = 20


class View:
    """Shows a run on a console; without colours and with plain lines where that is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._published: Counter[str] = Counter()

    def say(self, text: str) -> None:
        """One line of what is going on."""
        self._console.print(text, style="dim", markup=False, soft_wrap=True)

    @contextmanager
    def live(self, witnesses: Sequence[Witness], total: int) -> Iterator[None]:
        """Keep bars and table up to date; where there is no terminal, print the table at the end."""
        if not self._console.is_interactive:
            yield
            self._console.print(self._table(witnesses))
            return
        publishing = self._progress.add_task("published", total=total)
        consuming = self._progress.add_task("consumed", total=sum(len(witness.expected) for witness in witnesses))

        def render() -> Group:
            self._progress.update(publishing, completed=self._published.total())
            self._progress.update(consuming, completed=sum(len(witness.seen) for witness in witnesses))
            return Group(self._table(witnesses), self._progress)

        with Live(get_renderable=render, console=self._console, refresh_per_second=8):
            yield

    def publishing(self, events: Sequence[IncidentEvent]) -> Iterator[IncidentEvent]:
        """The events, counted as they are taken to be published."""
        for count, event in enumerate(events, 1):
            yield event
            self._published[event.type] += 1
            if not self._console.is_interactive and count * 4 % len(events) < 4:
                self.say(f"handed over {count:,} of {len(events):,}")

    def verdict(self, found: Sequence[str], total: int, brokers: Sequence[MessagingBackend]) -> None:
        """What the check came to, and each difference by name."""
        if not found:
            for broker in brokers:
                _, words = in_order(broker)
                self._line(
                    f"{broker.value}: all {total:,} events arrived, none missing, none twice, {words}",
                    "green",
                )
            return
        for words in found[:_NAMED]:
            self._line(words, "red")
        if len(found) > _NAMED:
            self._line(f"... and {len(found) - _NAMED:,} more", "red")
        self._line(f"what was consumed is not what was published: {len(found):,} differences", "bold red")

    def _line(self, text: str, style: str) -> None:
        self._console.print(text, style=style, markup=False, soft_wrap=True)

    def _table(self, witnesses: Sequence[Witness]) -> Table:
        # Without lines and padding, eight columns fit into 80 characters.
        table = Table("event", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        table.add_column("published", justify="right")
        for witness in witnesses:
            table.add_column(f"{witness.backend.value}\n{witness.name}", justify="right")
        seen = [Counter(event.type for event in list(witness.seen)) for witness in witnesses]
        asked = [{event.type for event in witness.expected} for witness in witnesses]
        for variant in [name for name in VARIANTS if self._published[name]]:
            cells = (_cell(count[variant], variant in types) for count, types in zip(seen, asked, strict=True))
            table.add_row(variant, f"{self._published[variant]:,}", *cells)
        table.add_section()
        table.add_row("all", *(f"{count.total():,}" for count in (self._published, *seen)))
        return table


def _cell(count: int, asked: bool) -> str:
    return f"{count:,}" if asked or count else "-"
