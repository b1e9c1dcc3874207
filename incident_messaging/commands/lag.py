"""``incident-messaging lag``: how much of its topic each group has not handled yet."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

import click

from incident_messaging.commands.common import Sources, backend_option, configured, failing, json_flag, printable
from incident_messaging.commands.groups import place_fields, table, topics_of
from incident_messaging.config import MessagingBackend
from incident_messaging.groups import GroupPlace, opened

__all__ = ["lag"]

_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60))


@click.command()
@click.option("--group", help="Only this group; another program's by its name on the broker.")
@click.option("--topic", help="Only this topic or pattern, as it was subscribed to, without prefix.")
@click.option("--max", "most", type=click.IntRange(min=0), metavar="N", help="Exit code 1 if a lag is over N.")
@backend_option("Which of two brokers.")
@configured
@json_flag
def lag(
    sources: Sources, group: str | None, topic: str | None, most: int | None,
    backend: MessagingBackend | None, as_json: bool,
) -> None:  # fmt: skip
    """Show how many messages each group has not settled, and how old the first of them is.

    UNSETTLED are those of them that were handed out, which on Kafka only the members know.

    Exit code: 0 if all went well; 1 if a lag is over --max, a --group or --topic has no place, or a broker cannot be
    had; 2 for wrong usage.
    """
    with failing():
        config = sources.load()
        with opened(config, backend) as brokers:
            found = brokers.places(group=group, topic=topic, ages=True)
    if as_json:
        for place in found:
            fields = place_fields(place, config.topic_prefix)
            click.echo(json.dumps(fields | {"oldest_age_secs": _age(place)}))
    elif found:
        click.echo(_page(found, config.topic_prefix))
    if not found:
        where = f"topics under {config.topic_prefix!r}" if topic is None else topic
        click.echo(f"no place of {'any group' if group is None else f'group {group}'} on {where}", err=True)
    over = [place for place in found if most is not None and place.lag > most]
    for place in over:
        click.echo(printable(f"over {most:,}: {place.name} with {place.lag:,}"), err=True)
    if over or (not found and (group is not None or topic is not None)):
        sys.exit(1)


def _page(found: Sequence[GroupPlace], prefix: str) -> str:
    rows = []
    for place in found:
        age = _age(place)
        rows.append(
            (
                place.group or place.name,
                ", ".join(topics_of(place, prefix)),
                place.backend,
                f"{place.lag:,}",
                "-" if place.unsettled is None else f"{place.unsettled:,}",
                "-" if age is None else _words(age),
            )
        )
    return table(("GROUP", "TOPIC", "BROKER", "LAG", "UNSETTLED", "OLDEST"), rows)


def _age(place: GroupPlace) -> float | None:
    return None if place.oldest is None else round(max(0.0, time.time() - place.oldest), 3)


def _words(seconds: float) -> str:
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.1f}{unit}"
    return f"{seconds:.0f}s"
