"""What the commands share: where their configuration comes from, how an error is told, what a terminal is shown."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import attrs
import click

from incident_messaging.config import MessagingBackend, MessagingConfig
from incident_messaging.config.sources import from_texts
from incident_messaging.errors import ConfigurationError, MessagingError
from incident_messaging.service import MessagingService

__all__ = [
    "INTERRUPTED", "MOST_SECONDS", "WRONG_USAGE", "Number", "Sources", "backend_option", "configured", "connected",
    "failing", "json_flag", "moment", "printable",
]  # fmt: skip

#: What a shell reports of a command that Ctrl-C ended.
INTERRUPTED = 130
#: What is asked for is not allowed, whoever finds that: click in the options, or the SDK.
WRONG_USAGE = 2

#: What an option may have of seconds, eleven days: the system's own waits end at 24.
MOST_SECONDS = 1_000_000

_AGO = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
#: What is behind a setting's name, where no "=" says how far that goes: it may be a secret.
_BEHIND = re.compile(r"[^\w.-].*", re.DOTALL)


class Number(click.FloatRange):
    """A number in a range; ``nan``, which click's own lets through any, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number of a text."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is no number", param, ctx)
        return number


@attrs.frozen
class Sources:
    """Where a command's configuration comes from.

    Attributes:
        file: A TOML or JSON file.
        settings: What ``--set`` gave, as ``(name, value)``; it wins over the environment, which wins over the file.
    """

    file: Path | None = None
    settings: tuple[tuple[str, str], ...] = ()

    def load(self) -> MessagingConfig:
        """The configuration.

        Raises:
            ConfigurationError: See `MessagingConfig.load`.
        """
        return MessagingConfig.load(self.file, **self.overrides())

    def overrides(self) -> dict[str, Any]:
        """The layer that ``--set`` gave.

        Raises:
            ConfigurationError: A name is unknown, or a text cannot be read.
        """
        return from_texts(MessagingConfig, dict(self.settings))

    def beyond(self, outer: Sources | None) -> Sources:
        """These, and where they say nothing what stood before the name of a subcommand."""
        if outer is None:
            return self
        return Sources(self.file or outer.file, (*outer.settings, *self.settings))


def _setting(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    settings = []
    for value in values:
        name, equals, text = value.partition("=")
        if not (name and equals):
            said = _BEHIND.sub("", value.strip())
            raise click.BadParameter(f"{said!r} is not NAME=VALUE, such as kafka.group_id=pager")
        settings.append((name.strip(), text))
    return tuple(settings)


def configured(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say where the configuration comes from, given to the command as ``sources``.

    A group that has them, too, keeps its own as the context's object.
    """

    @click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
        metavar="FILE",
        help="TOML or JSON; the environment (INCIDENT_MESSAGING_...) wins over it.",
    )
    @click.option(
        "--set",
        "settings",
        multiple=True,
        callback=_setting,
        metavar="NAME=VALUE",
        help="One setting, such as backend=kafka or nats.servers=nats://a:4222,nats://b:4222; wins over all else.",
    )
    @wraps(command)
    def with_sources(config: Path | None, settings: tuple[tuple[str, str], ...], **options: Any) -> None:
        outer = click.get_current_context().find_object(Sources)
        command(sources=Sources(config, settings).beyond(outer), **options)

    return with_sources


def backend_option(words: str, name: str = "--backend") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option that names one of two brokers."""

    def member(_context: click.Context, _option: click.Parameter, value: str | None) -> MessagingBackend | None:
        return None if value is None else MessagingBackend(value)

    return click.option(name, type=click.Choice(["nats", "kafka"]), callback=member, help=words)


json_flag = click.option("--json", "as_json", is_flag=True, help="JSON for programs instead of text for people.")


@contextmanager
def failing() -> Iterator[None]:
    """An error of the SDK is one line on stderr and exit code 1, or 2 where it is the caller's; Ctrl-C is 130."""
    try:
        yield
    except MessagingError as error:
        click.echo(f"Error: {printable(str(error))}", err=True)
        sys.exit(WRONG_USAGE if isinstance(error, ConfigurationError) else 1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@contextmanager
def connected(sources: Sources) -> Iterator[MessagingService]:
    """A service as configured, closed at the end; errors as in `failing`."""
    with failing(), MessagingService(sources.load()) as service:
        yield service


def moment(_context: click.Context, _option: click.Parameter, value: str | None) -> datetime | None:
    """An option's time: so long ago, or ISO 8601 (local where it has no zone)."""
    if value is None:
        return None
    try:
        if ago := _AGO.fullmatch(value):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(value).astimezone()
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value!r} is no time: 30m, 2h, 7d, or ISO 8601") from None


def printable(text: str) -> str:
    """Text for a terminal: what strangers wrote may hold escape sequences, marks that turn its order, foreign bytes."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
