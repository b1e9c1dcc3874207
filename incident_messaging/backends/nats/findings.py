"""What the doctor's checks make of a NATS server's answers. Pure.

Commands are those of the ``nats`` tool (https://github.com/nats-io/natscli), lines those of the server's configuration
(https://docs.nats.io/running-a-nats-service/configuration).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from incident_messaging import topics
from incident_messaging.backends.nats.options import bare
from incident_messaging.backends.nats.places import REACHED
from incident_messaging.backends.nats.streams import nanos
from incident_messaging.config import MessagingConfig, NatsConfig
from incident_messaging.doctor import (
    HALF,
    NEARLY,
    Finding,
    broken,
    ok,
    repeat_secs,
    resend_secs,
    retries_secs,
    spoken,
    warning,
)
from incident_messaging.errors import MessagingError

#: What the server or JetStream said.
_Told = Mapping[str, Any]

#: What turns JetStream on.
JETSTREAM = '"jetstream { store_dir: DIR }" in nats.conf, and "jetstream: enabled" in the account; then start it anew'
_A_WEEK = 604_800
#: The shortest ``ack_wait`` that outlives a pause of the process or of the network, in seconds.
_LEAST_ACK_WAIT = 2.0
#: Unacknowledged messages that a group may have at least: a hundred members with the usual prefetch.
_PENDING = 100_000
_DIGEST = re.compile(r"-[0-9a-f]{8}$")


def unix(text: str) -> float:
    """The server's RFC 3339 as Unix seconds."""
    return datetime.fromisoformat(text).timestamp()


# Connections and rights.


def of_error(error: MessagingError, config: NatsConfig) -> Finding:
    """An error that a check has met, as the SDK says it."""
    return broken(str(error), reach(error.code, config, config.servers[0]))


def reach(code: str, config: NatsConfig, url: str) -> str:
    """What to do where an address is of no use."""
    if code == "tls":
        given = {"ca": config.tls_ca_file, "cert": config.tls_cert_file, "key": config.tls_key_file}
        files = "".join(f" --tls{name} {file}" for name, file in given.items() if file is not None)
        return f"nats --server {bare(url)}{files} rtt; correct nats.enable_tls, nats.tls_ca_file or the address"
    if code == "unauthorized":
        return f"nats --server {bare(url)} --user USER --password PASSWORD rtt; correct the login in the configuration"
    if code == "invalid":
        return "the setting or the file that the text names"
    return f"nats --server {bare(url)} rtt; start the server, or correct nats.servers"


def allow(subject: str) -> str:
    """The line that grants a right to publish."""
    return f'"{subject}" in permissions.publish of the user in nats.conf, then: nats-server --signal reload'


# What the server takes.


def payload(config: MessagingConfig, most: int) -> Iterator[Finding]:
    """``max_payload`` against ``max_message_size``."""
    wanted = config.max_message_size
    if most >= wanted:
        yield ok(f"max_payload is {most:,} bytes, max_message_size {wanted:,}")
    else:
        yield warning(
            f"max_payload is {most:,} bytes, and max_message_size {wanted:,}: what is larger is refused",
            f"max_payload: {wanted} in nats.conf, then: nats-server --signal reload; or max_message_size = {most}",
        )


# Streams: there, and keeping what they are given.


def overlap(topic: str, name: str, subjects: Sequence[str], others: Sequence[str]) -> Finding:
    """A topic without a stream, where others are in the way of the one that would be made."""
    return broken(
        f"no stream keeps {topic}, and {name} ({', '.join(subjects)}) would overlap with {', '.join(others)}",
        f"nats stream edit {others[0]} --subjects ... with {topic} among them, -f",
        "nothing can be published to it",
    )


def uncovered(
    topic: str, name: str, subjects: Sequence[str], there: Mapping[str, Any] | None, config: NatsConfig
) -> Finding:
    """A topic without a stream; ``there`` is the stream that has the name already."""
    if there is not None:
        kept = [*(there["config"].get("subjects") or ()), *subjects]
        return broken(
            f"stream {name} exists and does not keep {topic}",
            f"nats stream edit {name} --subjects '{','.join(kept)}' -f",
            "nothing can be published to it",
        )
    if config.create_streams:
        return ok(f"no stream keeps {topic} yet; the first use makes {name}")
    copies = config.stream_replicas or 1
    return broken(
        f"no stream keeps {topic}, and create_streams is off",
        f"nats stream add {name} --subjects '{','.join(subjects)}' --storage file --replicas {copies} --defaults",
        "nothing can be published to it",
    )


def not_made(missing: Collection[str], bucket: str) -> Finding:
    """What is missing where nothing is to be made; streams are told of by their topics."""
    if bucket not in missing:
        return ok("create_streams is off")
    name = bucket.removeprefix("KV_")
    return warning(
        f"create_streams is off, and there is no bucket {name}",
        f"nats kv add {name} --ttl 24h",
        "after a crash, attempts at its messages are counted anew",
    )


def replicas(config: MessagingConfig, name: str, info: _Told, server: _Told) -> Iterator[Finding]:
    """Copies of a stream, and whether all of them are there."""
    copies, wanted = info["config"]["num_replicas"], config.nats.stream_replicas
    cluster = info.get("cluster") or {}
    mend = f"nats stream edit {name} --replicas {wanted or 3} -f"
    others = cluster.get("replicas") or ()
    gone = [each["name"] for each in others if each.get("offline") or not each.get("current", True)]
    if "name" in cluster and not cluster.get("leader"):
        yield broken(f"{name} has no leader: nothing is stored or handed out", f"nats stream cluster step-down {name}")
    elif gone:
        yield warning(
            f"{name}: copies are behind or away: {', '.join(gone)}", f"nats stream info {name}; nats server ls"
        )
    if wanted is not None and copies < wanted:
        yield warning(f"{name}: copies {copies}, configured are {wanted}", mend)
    elif wanted is None and copies == 1 and "cluster" in server:
        yield warning(f"{name} has one copy, on a cluster", mend)
    elif wanted is None and copies == 1:
        yield warning(
            f"{name} has one copy, on one server",
            "a cluster of three servers; or nats.stream_replicas = 1, if one copy is meant",
        )
    else:
        yield ok(f"{name}: copies {copies}")


def keeping(_config: MessagingConfig, name: str, info: _Told, _server: _Told) -> Iterator[Finding]:
    """Whether a stream acknowledges, and keeps each message until its age ends."""
    config, edit = info["config"], f"nats stream edit {name}"
    anew = f"nats stream backup {name} DIR; nats stream rm {name} -f; nats stream restore DIR --config NEW.json"
    found = []
    if config["retention"] != "limits":
        found.append(broken(f"{name}: retention is {config['retention']}, which deletes what one group has read", anew))
    if config.get("no_ack"):
        found.append(broken(f"{name}: no_ack is set: no publish is ever acknowledged", f"{edit} --ack -f"))
    if config.get("sealed"):
        found.append(broken(f"{name}: it is sealed, and takes nothing", anew))
    if config.get("max_msgs_per_subject", -1) > 0:
        few = config["max_msgs_per_subject"]
        what = f"{name}: max_msgs_per_subject is {few}, so older messages of a topic are deleted, read or not"
        found.append(broken(what, f"{edit} --max-msgs-per-subject=-1 -f"))
    if config["storage"] == "memory":
        found.append(warning(f"{name}: storage is memory: what was acknowledged is gone after a restart", anew))
    bounds = [bound for bound in ("max_msgs", "max_bytes") if config.get(bound, -1) > 0]
    if bounds and config["discard"] == "old":
        what = f"{name}: {' and '.join(bounds)} with discard old deletes unread messages when it is full"
        found.append(warning(what, f"{edit} --discard new -f"))
    if config.get("deny_delete"):
        found.append(warning(f"{name}: deny_delete is set: no dead letter can be redriven or purged", anew))
    yield from found or [ok(f"{name} keeps what it acknowledges, by age, on disk")]


def sizes(config: MessagingConfig, name: str, info: _Told, _server: _Told) -> Iterator[Finding]:
    """``max_msg_size`` of a stream against ``max_message_size``: the SDK knows the server's limit, and not this one."""
    most, wanted = info["config"].get("max_msg_size", -1), config.max_message_size
    if 0 <= most < wanted:
        yield broken(
            f"{name}: max_msg_size is {most:,} bytes, and max_message_size {wanted:,}",
            f"nats stream edit {name} --max-msg-size={wanted} -f; or max_message_size = {most}",
        )
    else:
        yield ok(f"{name}: max_msg_size is {f'{most:,} bytes' if most >= 0 else 'without a bound'}")


def room(_config: MessagingConfig, name: str, info: _Told, _server: _Told) -> Iterator[Finding]:
    """How full a stream with a limit is that refuses when it is full."""
    config, state = info["config"], info["state"]
    pairs = (("max_msgs", state["messages"]), ("max_bytes", state["bytes"]))
    fill = {bound: has / config[bound] for bound, has in pairs if config.get(bound, -1) > 0}
    bound = max(fill, key=lambda each: fill[each], default="")
    option = bound.replace("_", "-")
    if not bound or config["discard"] != "new":
        yield ok(f"{name} has {state['messages']:,} messages, {state['bytes']:,} bytes")
        return
    what, mend = (
        f"{name} has {fill[bound]:.0%} of its {bound}",
        f"nats stream edit {name} --{option}={2 * config[bound]} -f",
    )
    if fill[bound] >= 1:
        yield broken(f"{what}: it refuses every message, dead letters too", mend)
    elif fill[bound] >= NEARLY:
        yield warning(f"{what}: when it is full it refuses every message, dead letters too", mend)
    else:
        yield ok(what)


def age(config: MessagingConfig, name: str, info: _Told, _server: _Told) -> Iterator[Finding]:
    """How long a stream keeps messages, against the time that retries take and what is configured."""
    kept, needed = info["config"].get("max_age", 0) / 1e9, retries_secs(config) + config.nats.ack_wait_ms / 1000
    wanted = config.nats.stream_max_age_secs
    mend = f"nats stream edit {name} --max-age {wanted if wanted == 0 or wanted > needed else _A_WEEK}s -f"
    if 0 < kept <= needed:
        yield broken(f"{name} keeps messages {spoken(kept)}, and retries may take {spoken(needed)}", mend)
    elif kept and (wanted == 0 or kept < wanted):
        configured = spoken(wanted) if wanted else "for ever"
        yield warning(f"{name} keeps messages {spoken(kept)}, configured is {configured}", mend)
    else:
        yield ok(f"{name} keeps messages {spoken(kept) if kept else 'for ever'}")


def duplicates(config: MessagingConfig, name: str, info: _Told, _server: _Told) -> Iterator[Finding]:
    """The window in which a message that is sent again is stored once, against how long it may be sent again."""
    window = info["config"].get("duplicate_window", 0) / 1e9
    sure, needed = resend_secs(config), repeat_secs(config)
    mend = f"nats stream edit {name} --dupe-window {max(needed, config.nats.duplicate_window_secs):.0f}s -f"
    if window < sure:
        what = f"{name}: the duplicate window is {spoken(window)}, and a publish is sent again for {spoken(sure)}"
        yield broken(what, mend)
    elif window < needed:
        what = f"{name}: the duplicate window is {spoken(window)}, and a message may come again within {spoken(needed)}"
        yield warning(what, mend)
    else:
        yield ok(f"{name}: the duplicate window is {spoken(window)}, needed are {spoken(needed)}")


# Groups.


def is_ours(consumer: Mapping[str, Any]) -> bool:
    """Whether a consumer is the durable of one of the SDK's groups, by its name."""
    name, subject = consumer["config"].get("durable_name", ""), consumer["config"].get("filter_subject", "")
    pattern = _DIGEST.sub("", topics.durable_name("", subject)) if subject else ""
    return bool(pattern and _DIGEST.search(name) and _DIGEST.sub("", name).endswith(pattern))


def group(config: MessagingConfig, consumer: Mapping[str, Any]) -> Iterator[Finding]:
    """A durable's settings, which the SDK never changes once it is made."""
    name, stream, settings = consumer["name"], consumer["stream_name"], consumer["config"]
    edit = f"nats consumer edit {stream} {name}"
    wait, wanted = settings.get("ack_wait", 0) / 1e9, config.nats.ack_wait_ms / 1000
    found = []
    if settings.get("max_deliver", -1) > 0:
        few = settings["max_deliver"]
        what = f"{name}: max_deliver is {few}: what was delivered so often is dropped, and no dead letter tells of it"
        found.append(broken(what, f"{edit} --max-deliver=-1 -f"))
    if settings.get("ack_policy") != "explicit" or settings.get("deliver_subject"):
        what = f"{name}: it is no pull consumer with explicit acknowledgement, and no subscription takes it"
        found.append(broken(what, f"nats consumer rm {stream} {name} -f"))
    elif wait < _LEAST_ACK_WAIT:
        what = f"{name}: ack_wait is {spoken(wait)}: a short pause of the process hands its messages out twice"
        found.append(warning(what, f"{edit} --wait {max(wanted, _LEAST_ACK_WAIT):g}s -f"))
    elif nanos(wait) != nanos(wanted):
        what = f"{name}: ack_wait is {spoken(wait)}, configured is {spoken(wanted)}"
        found.append(
            warning(what, f"{edit} --wait {wanted:g}s -f", "a durable keeps what was configured when it was made")
        )
    if 0 < settings.get("max_ack_pending", -1) < _PENDING:
        what = f"{name}: max_ack_pending is {settings['max_ack_pending']:,}: one slow member holds up the others"
        found.append(warning(what, f"{edit} --max-pending={_PENDING} -f"))
    yield from found or [ok(f"{name}: ack_wait is {spoken(wait)}")]


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
        waits = {each["name"]: each["config"].get("ack_wait", 0) / 1e9 for each in durables}
        waits = waits or {"nats.ack_wait_ms": config.nats.ack_wait_ms / 1000}
        name = min(waits, key=lambda each: waits[each])
        if secs <= waits[name]:
            yield ok(f"99 of 100 handlers of {topic} end within {spoken(secs)}, ack_wait is {spoken(waits[name])}")
            continue
        mend = f"nats consumer edit {durables[0]['stream_name']} {name} --wait {2 * secs:.0f}s -f; " if durables else ""
        yield warning(
            f"handlers of {topic} take up to {spoken(secs)}, and ack_wait is {spoken(waits[name])} ({name})",
            f"{mend}nats.ack_wait_ms = {2000 * secs:.0f} for the groups to come",
        )


def _short(config: MessagingConfig, consumer: Mapping[str, Any]) -> str:
    return topics.short_name(config.topic_prefix, consumer["config"]["filter_subject"])
