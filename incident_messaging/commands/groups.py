"""``incident-messaging groups``: who has a place on the brokers, put elsewhere, taken over."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
import click

from incident_messaging import topics
from incident_messaging.commands.common import (
    Sources,
    backend_option,
    configured,
    failing,
    json_flag,
    moment,
    printable,
)
from incident_messaging.config import MessagingBackend
from incident_messaging.groups import GroupPlace, Groups, Move, Target, opened

__all__ = ["groups", "place_fields", "table", "topics_of"]

#: Positions that are shown to people; JSON has all.
_SHOWN = 8


def _target(context: click.Context, option: click.Parameter, value: str) -> Target | None:
    ends: dict[str, Target] = {"earliest": "earliest", "latest": "latest"}
    return ends.get(value) or moment(context, option, value)


@click.group()
@configured
@click.pass_context
def groups(context: click.Context, sources: Sources) -> None:
    """Look at the groups' places on the brokers, put one elsewhere, take one over.

    Exit code: 0 if all went well; 1 if it was refused or a broker cannot be had; 2 for wrong usage.
    """
    context.obj = sources


@groups.command("list")
@backend_option("Which of two brokers.")
@configured
@json_flag
def list_(sources: Sources, backend: MessagingBackend | None, as_json: bool) -> None:
    """Show who has a place.

    Every place on topics under the prefix; those of other programs are (foreign). NATS does not count members: "some"
    wait for messages, "none" do, or "unknown", where messages are in hands that may be dead.
    """
    with failing():
        config = sources.load()
        with opened(config, backend) as brokers:
            found = brokers.places(foreign=True)
    if as_json:
        for place in found:
            click.echo(json.dumps(place_fields(place, config.topic_prefix)))
        return
    rows = [
        (
            place.backend,
            place.name,
            place.group or "(foreign)",
            ", ".join(topics_of(place, config.topic_prefix)),
            _members(place),
            f"{place.lag:,}",
        )
        for place in found
    ]
    click.echo(table(("BROKER", "NAME", "GROUP", "TOPIC", "MEMBERS", "LAG"), rows))


@groups.command()
@click.argument("group")
@click.argument("topic")
@click.option(
    "--to",
    "target",
    required=True,
    callback=_target,
    metavar="earliest|latest|TIME",
    help="Where it is to begin; TIME is what was stored at or after: 30m, 2h, 7d ago, or ISO 8601.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@backend_option("Which of two brokers.")
@configured
@json_flag
def reset(
    sources: Sources, group: str, topic: str, target: Target, dry_run: bool, yes: bool,
    backend: MessagingBackend | None, as_json: bool,
) -> None:  # fmt: skip
    """Put a group's place elsewhere.

    TOPIC is as it was subscribed to, without prefix; * and > are wildcards. --to means what the start of a subscription
    means. It is refused while GROUP has members; a group without a place gets one. Of two brokers it is that of
    subscriptions (subscribe_backend), unless --backend says otherwise.
    """
    with failing(), opened(sources.load(), backend) as brokers:
        move = brokers.plan_reset(group, topic, target)
        if not (dry_run or yes):
            click.echo(_page(move), err=True)
            click.confirm("put it there?", abort=True, err=True)
        _do(brokers, move, dry_run=dry_run, as_json=as_json)


@groups.command()
@click.argument("existing")
@click.argument("group")
@click.argument("topic")
@click.option("--dry-run", is_flag=True, help="Only show what would be taken over.")
@backend_option("Which of two brokers.")
@configured
@json_flag
def adopt(
    sources: Sources, existing: str, group: str, topic: str, dry_run: bool,
    backend: MessagingBackend | None, as_json: bool,
) -> None:  # fmt: skip
    """Take over another program's place.

    EXISTING is its Kafka group.id or JetStream durable; TOPIC is without prefix, * and > are wildcards. GROUP then
    begins with the first message that EXISTING has not acknowledged. Stop the other program before: it is refused
    while EXISTING has members, or GROUP has a place. EXISTING keeps its place.
    """
    with failing(), opened(sources.load(), backend) as brokers:
        move = brokers.plan_adopt(existing, group, topic)
        _do(brokers, move, dry_run=dry_run, as_json=as_json)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns with as much room as they need; the names in them may be anybody's."""
    lines = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def place_fields(place: GroupPlace, prefix: str) -> dict[str, Any]:
    """A place for programs."""
    fields = attrs.asdict(place) | {"foreign": place.group is None}
    fields["topics"] = topics_of(place, prefix)
    if place.oldest is not None:
        fields["oldest"] = datetime.fromtimestamp(place.oldest, UTC).isoformat()
    return fields


def _do(brokers: Groups, move: Move, *, dry_run: bool, as_json: bool) -> None:
    if not dry_run:
        brokers.apply(move)
    if as_json:
        said = attrs.asdict(move, filter=lambda field, _: field.name != "steps")
        click.echo(json.dumps(said | {"done": not dry_run}))
    else:
        click.echo(f"{_page(move)}\n{'nothing was changed (--dry-run)' if dry_run else 'done'}")


def _page(move: Move) -> str:
    more = f" and {len(move.begins) - _SHOWN} more" if len(move.begins) > _SHOWN else ""
    before = "no place yet" if move.before is None else f"{move.before:,} unread now"
    lines = [
        f"{move.group} on {move.topic} ({move.backend}: {move.name})",
        f"  begins at {', '.join(move.begins[:_SHOWN])}{more}",
        f"  {before}, {move.after:,} from there on",
    ]
    if move.skipped:
        lines.append(f"  {move.skipped:,} that were not handled never will be")
    if move.again:
        lines.append(f"  at most {move.again:,} that were handled will be again")
    return "\n".join(printable(line) for line in [*lines, *(f"  {remark}" for remark in move.remarks)])


def _members(place: GroupPlace) -> str:
    if place.members is not None:
        return f"{place.members:,}"
    return {True: "some", False: "none", None: "unknown"}[place.active]


def topics_of(place: GroupPlace, prefix: str) -> list[str]:
    """What a place of this SDK reads as it was subscribed to; another program's in full."""
    return [topic if place.group is None else topics.short_name(prefix, topic) for topic in place.topics]
