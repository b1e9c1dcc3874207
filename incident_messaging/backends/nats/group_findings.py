"""What the doctor's checks make of the durables of groups. Pure; see `findings`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from incident_messaging import topics
from incident_messaging.backends.nats.places import REACHED
from incident_messaging.backends.nats.streams import nanos
from incident_messaging.backends.nats.wire import unix
from incident_messaging.config import MessagingConfig
from incident_messaging.doctor import HALF, Finding, broken, ok, spoken, warning

#: The shortest ``ack_wait`` that outlives a pause of the process or of the network, in seconds.
_LEAST_ACK_WAIT = 2.0
#: Unacknowledged messages that a group may have at least: a hundred members with the usual prefetch.
_PENDING = 100_000
#: What stands for "never", in seconds: the ``nats`` tool takes no 0 for ``--inactive-threshold``.
_NEVER = 3_153_600_000
_DIGEST = re.compile(r"-[0-9a-f]{8}$")


def is_ours(consumer: Mapping[str, Any]) -> bool:
    """Whether a consumer is the durable of one of the SDK's groups, by its name."""
    name, subject = consumer["config"].get("durable_name", ""), consumer["config"].get("filter_subject", "")
    pattern = _DIGEST.sub("", topics.durable_name("", subject)) if subject else ""
    return bool(pattern and _DIGEST.search(name) and _DIGEST.sub("", name).endswith(pattern))


def group(config: MessagingConfig, consumer: Mapping[str, Any], info: Mapping[str, Any]) -> Iterator[Finding]:
    """A durable's settings, which the SDK never changes once it is made; ``info`` tells of its stream."""
    found = [*_loses(consumer, info), *_waits(config, consumer), *_goes_with_its_server(consumer, info)]
    yield from found or [ok(f"{consumer['name']}: ack_wait is {spoken(_ack_wait(consumer))}")]


def _ack_wait(consumer: Mapping[str, Any]) -> float:
    return float(consumer["config"].get("ack_wait", 0)) / 1e9


def _edit(consumer: Mapping[str, Any], option: str) -> str:
    return f"nats consumer edit {consumer['stream_name']} {consumer['name']} {option} -f"


def _anew(consumer: Mapping[str, Any]) -> str:
    return (
        f"nats consumer rm {consumer['stream_name']} {consumer['name']} -f; the next subscription makes it anew, "
        "and begins where its start says: its place goes with it"
    )


def _loses(consumer: Mapping[str, Any], info: Mapping[str, Any]) -> Iterator[Finding]:
    """What keeps messages from the group, or its place."""
    name, settings = consumer["name"], consumer["config"]
    if settings.get("max_deliver", -1) > 0:
        few = settings["max_deliver"]
        what = f"{name}: max_deliver is {few}: what was delivered so often is dropped, and no dead letter tells of it"
        yield broken(what, _edit(consumer, "--max-deliver=-1"))
    if settings.get("headers_only"):
        what = f"{name}: headers_only is set: messages come without their body, and end as dead letters"
        yield broken(what, _edit(consumer, "--no-headers-only"))
    kept, idle = info["config"].get("max_age", 0) / 1e9 or _NEVER, settings.get("inactive_threshold", 0) / 1e9
    if 0 < idle < kept:
        what = f"{name}: inactive_threshold is {spoken(idle)}: when nobody fetches for so long, the group has no place"
        yield broken(what, _edit(consumer, f"--inactive-threshold {_NEVER}s"), "then it begins anew")
    if consumer.get("paused"):
        what = f"{name}: it is paused until {settings.get('pause_until')}, and hands nothing out"
        yield broken(what, f"nats consumer resume {consumer['stream_name']} {name} -f")
    if settings.get("ack_policy") != "explicit" or settings.get("deliver_subject"):
        what = f"{name}: it is no pull consumer with explicit acknowledgement, and no subscription takes it"
        yield broken(what, _anew(consumer))


def _waits(config: MessagingConfig, consumer: Mapping[str, Any]) -> Iterator[Finding]:
    """How long it waits for acknowledgements, and for how many."""
    name, settings = consumer["name"], consumer["config"]
    wait, wanted = _ack_wait(consumer), config.nats.ack_wait_ms / 1000
    if settings.get("ack_policy") != "explicit":
        return
    if wait < _LEAST_ACK_WAIT:
        what = f"{name}: ack_wait is {spoken(wait)}: a short pause of the process hands its messages out twice"
        yield warning(what, _edit(consumer, f"--wait {max(wanted, _LEAST_ACK_WAIT):g}s"))
    elif nanos(wait) != nanos(wanted):
        what = f"{name}: ack_wait is {spoken(wait)}, configured is {spoken(wanted)}"
        why = "a durable keeps what was configured when it was made"
        yield warning(what, _edit(consumer, f"--wait {wanted:g}s"), why)
    if 0 < settings.get("max_ack_pending", -1) < _PENDING:
        what = f"{name}: max_ack_pending is {settings['max_ack_pending']:,}: one slow member holds up the others"
        yield warning(what, _edit(consumer, f"--max-pending={_PENDING}"))
    if settings.get("replay_policy", "instant") != "instant":
        what = f"{name}: replay_policy is {settings['replay_policy']}: a backlog takes as long as it took to arise"
        yield warning(what, _anew(consumer))


def _goes_with_its_server(consumer: Mapping[str, Any], info: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether its place is kept as safely as the messages are."""
    name, settings, stream = consumer["name"], consumer["config"], info["config"]
    begins_anew = "a group whose place is gone begins anew"
    if settings.get("mem_storage") and stream["storage"] == "file":
        what = f"{name}: mem_storage is set: its place is gone after a restart of the server"
        yield warning(what, _anew(consumer), begins_anew)
    copies = settings.get("num_replicas", 0)
    if 0 < copies < stream["num_replicas"]:
        what = f"{name}: copies of its place {copies}, of its stream {stream['num_replicas']}"
        yield warning(what, _edit(consumer, f"--replicas {stream['num_replicas']}"), begins_anew)


def passed_over(consumer: Mapping[str, Any], info: Mapping[str, Any]) -> Finding | None:
    """Whether a stream begins behind what a group has reached: its next subscription ends with ``lost_place``."""
    if consumer.get("num_waiting"):
        return None  # somebody reads, and is told by the SDK itself
    marked = int((consumer["config"].get("metadata") or {}).get(REACHED, 0))
    missing = info["state"]["first_seq"] - 1 - max(marked, consumer["delivered"]["stream_seq"])
    if missing <= 0:
        return None
    return broken(
        f"{consumer['name']}: up to {missing:,} messages were deleted unread",
        f"nats stream edit {consumer['stream_name']} --max-age ... -f for the next time; who subscribes is told once "
        "(lost_place), and goes on from there",
    )


def lag(consumer: Mapping[str, Any], info: Mapping[str, Any], oldest: float) -> Finding:
    """How much of its time the oldest unread message has behind it."""
    name, waiting = consumer["name"], consumer["num_pending"] + consumer["num_ack_pending"]
    kept, behind = info["config"].get("max_age", 0) / 1e9, unix(info["ts"]) - oldest if "ts" in info else 0.0
    what = f"{name}: {waiting:,} unread, the oldest is {spoken(max(0.0, behind))} old"
    if not kept or behind < HALF * kept:
        return ok(what)
    return warning(
        f"{what}, and is deleted when it is {spoken(kept)} old",
        f"nats stream edit {consumer['stream_name']} --max-age {2 * kept:.0f}s -f; then more or faster consumers",
    )


def handlers(
    config: MessagingConfig, times: Mapping[str, float], consumers: Sequence[Mapping[str, Any]]
) -> Iterator[Finding]:
    """How long handlers take, against the time that the server waits for their acknowledgement."""
    if not times:
        yield ok("the worker has handled nothing from NATS yet")
    for topic, secs in times.items():
        durables = [each for each in consumers if topics.regex(_short(config, each)).fullmatch(topic)]
        first = min(durables, key=_ack_wait, default=None)
        wait = config.nats.ack_wait_ms / 1000 if first is None else _ack_wait(first)
        if secs <= wait:
            yield ok(f"99 of 100 handlers of {topic} end within {spoken(secs)}, ack_wait is {spoken(wait)}")
            continue
        short = [each for each in durables if _ack_wait(each) < secs]
        mends = [_edit(each, f"--wait {2 * secs:.0f}s") for each in short]
        yield warning(
            f"handlers of {topic} take up to {spoken(secs)}, and ack_wait is {spoken(wait)} "
            f"({'nats.ack_wait_ms' if first is None else first['name']})",
            "; ".join([*mends, f"nats.ack_wait_ms = {2000 * secs:.0f} for the groups to come"]),
        )


def _short(config: MessagingConfig, consumer: Mapping[str, Any]) -> str:
    return topics.short_name(config.topic_prefix, consumer["config"]["filter_subject"])
