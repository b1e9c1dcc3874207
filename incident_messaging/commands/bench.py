"""``incident-messaging bench``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import click
from rich.console import Console

from incident_messaging.commands.common import Number, Sources, configured, failing, json_flag, printable
from incident_messaging.commands.measure import Figures, Latency, Load, OwnTopic, Rate, measured
from incident_messaging.config import MessagingBackend, MessagingConfig
from incident_messaging.errors import ConfigurationError

__all__ = ["bench"]


@click.command()
@configured
@click.option(
    "--messages",
    type=click.IntRange(1, 1_000_000),
    default=10_000,
    show_default=True,
    metavar="N",
    help="How many messages, of each of the two ways to publish.",
)
@click.option(
    "--size",
    type=click.IntRange(0, 100_000_000),
    default=256,
    show_default=True,
    metavar="BYTES",
    help="Text in each message, which hardly compresses; the envelope comes on top.",
)
@click.option("--threads", type=click.IntRange(1, 256), default=4, show_default=True, help="That publish and wait.")
@click.option(
    "--seconds",
    type=Number(0.1, 600),
    default=10.0,
    show_default=True,
    help="After which a step begins nothing more.",
)
@json_flag
def bench(sources: Sources, as_json: bool, messages: int, size: int, threads: int, seconds: float) -> None:
    """Measure the configured brokers with a bounded load.

    It loads them, without asking. On each broker by itself, on a topic of its own (bench-..., below the configured
    prefix): publish in threads that wait for each acknowledgement, while a callback takes what comes; publish_batch;
    a callback that reads the batch. Topic, messages and group are deleted at the end as far as the rights go; what is
    left is said on stderr. A subscription to a wildcard that matches the topic sees the messages.

    The figures: messages a second; milliseconds that half, 95 %, 99 % and all of the messages stayed within, of publish
    and from there to the callback. Both ends are this process, configured as it is, but without dead letters.

    Exit code: 0; 1 if a broker cannot be had or refused something; 2 for wrong usage; 130 after Ctrl-C.
    """
    load = Load(messages=messages, size=size, threads=threads, seconds=seconds)
    with failing():
        for config in _each_broker(sources.load()):
            figures, topic = _measured(config, load)
            name = config.backend.value
            click.echo(_as_json(name, topic, load, figures) if as_json else _page(name, topic, load, figures))


def _each_broker(config: MessagingConfig) -> list[MessagingConfig]:
    """A configuration for each broker alone."""
    if not config.enabled:
        raise ConfigurationError("messaging is disabled (enabled is false): there is nothing to measure")
    if config.backend is MessagingBackend.MEMORY:
        raise ConfigurationError("backend 'memory' is no broker: bench measures nats, kafka or both")
    both = (MessagingBackend.NATS, MessagingBackend.KAFKA)
    brokers = both if config.backend is MessagingBackend.BOTH else (config.backend,)
    # Nothing fails on purpose, so no topic of dead letters has to be made.
    return [attrs.evolve(config, backend=broker, enable_dlq=False) for broker in brokers]


def _measured(config: MessagingConfig, load: Load) -> tuple[Figures, OwnTopic]:
    topic = None
    try:
        with _status() as say, OwnTopic.of(config) as topic:
            name = config.backend.value
            click.echo(
                f"warning: this loads {name} with up to {2 * load.messages:,} messages of {load.size:,} bytes and "
                f"their envelopes, on {printable(topic.full)}",
                err=True,
            )
            return measured(config, load, topic, lambda step: say(f"{name}: {step}")), topic
    finally:
        for words in topic.left if topic else ():
            click.echo(f"left on {config.backend.value}: {printable(words)}", err=True)


@contextmanager
def _status() -> Iterator[Callable[[str], object]]:
    """What is being done, where stderr is a terminal."""
    console = Console(stderr=True)
    if not console.is_interactive:
        yield lambda _: None
        return
    with console.status("") as status:
        yield status.update


def _page(name: str, topic: OwnTopic, load: Load, figures: Figures) -> str:
    rows = [
        _row(f"publish, {load.threads} threads", figures.publish, figures.publish_latency),
        _row("publish to callback", figures.delivered, figures.delivery_latency),
        _row("publish_batch", figures.publish_batch),
        "  consume              nothing is kept to be read (core)"
        if figures.consume is None
        else _row("consume", figures.consume),
    ]
    return "\n".join([f"{name} ({printable(topic.full)}): bodies of {figures.body_bytes:,} bytes", *rows])


def _row(what: str, rate: Rate | int, latency: Latency | None = None) -> str:
    messages = rate if isinstance(rate, int) else rate.messages
    per_second = None if isinstance(rate, int) else rate.per_second
    speed = "" if per_second is None else f"{per_second:,.0f}/s"
    row = f"  {what:<20} {messages:>9,} messages {speed:>12}"
    if latency is not None:
        row += "   " + "  ".join(f"{name} {value:.2f}" for name, value in attrs.asdict(latency).items()) + " ms"
    return row


def _as_json(name: str, topic: OwnTopic, load: Load, figures: Figures) -> str:
    return json.dumps(
        {
            "backend": name,
            "topic": topic.full,
            "load": attrs.asdict(load),
            "body_bytes": figures.body_bytes,
            "publish": {**_rate(figures.publish), "latency_ms": _milliseconds(figures.publish_latency)},
            "publish_to_callback": {
                "messages": figures.delivered,
                "latency_ms": _milliseconds(figures.delivery_latency),
            },
            "publish_batch": _rate(figures.publish_batch),
            "consume": None if figures.consume is None else _rate(figures.consume),
            "left": topic.left,
        }
    )


def _milliseconds(latency: Latency | None) -> dict[str, float] | None:
    return None if latency is None else attrs.asdict(latency)


def _rate(rate: Rate) -> dict[str, Any]:
    return {"messages": rate.messages, "seconds": rate.seconds, "per_second": rate.per_second}
