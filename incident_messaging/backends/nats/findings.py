"""What the doctor's checks make of a NATS server's answers. Pure.

Commands are those of the ``nats`` tool (https://github.com/nats-io/natscli), lines those of the server's configuration
(https://docs.nats.io/running-a-nats-service/configuration).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import ceil
from typing import Any

from incident_messaging.backends.nats.options import bare
from incident_messaging.config import MessagingConfig, NatsConfig
from incident_messaging.doctor import (
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
    if "cluster" not in server:
        mend = f"a cluster of {wanted or 3} servers, then: {mend}; or nats.stream_replicas = {copies}, if that is meant"
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
        yield warning(f"{name} has one copy, on one server", mend)
    else:
        yield ok(f"{name}: copies {copies}")


def _anew(name: str) -> str:
    return f"nats stream backup {name} DIR; nats stream rm {name} -f; nats stream restore DIR --config NEW.json"


def keeping(_config: MessagingConfig, name: str, info: _Told, _server: _Told) -> Iterator[Finding]:
    """Whether a stream acknowledges, and keeps each message until its age ends."""
    config, edit = info["config"], f"nats stream edit {name}"
    anew = _anew(name)
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
    """How full a stream with a limit is that refuses when it is full, and whether it takes more consumers."""
    config, state = info["config"], info["state"]
    yield from _consumers(name, config.get("max_consumers", -1), state.get("consumer_count", 0))
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


def _consumers(name: str, most: int, there: int) -> Iterator[Finding]:
    if most <= 0 or there + 1 < NEARLY * most:
        return
    what, why = f"{name}: {there:,} consumers, max_consumers is {most:,}", "a group or broadcast more is refused"
    yield broken(what, _anew(name), why) if there >= most else warning(what, _anew(name), f"soon {why}")


def account(told: _Told) -> Iterator[Finding]:
    """How much of what its account may have is taken; a tier is what streams of so many copies have together."""
    tiers: Mapping[str, _Told] = told.get("tiers") or {"": told}
    for tier, each in tiers.items():
        found = []
        for kind, grows in (("storage", "every message"), ("streams", "a new stream"), ("consumers", "a new group")):
            has, most = each.get(kind, 0), (each.get("limits") or {}).get(f"max_{kind}", -1)
            if most <= 0 or has < NEARLY * most:
                continue
            what = f"the account has {has:,} of {most:,} {kind}{f' ({tier})' if tier else ''}"
            mend = f"max_{'store' if kind == 'storage' else kind} in jetstream of the account, or of its JWT"
            judge = broken if has >= most and kind != "streams" else warning
            found.append(judge(what, mend, f"when there is no room left, {grows} is refused"))
        yield from found or [ok(f"the account has room{f' ({tier})' if tier else ''}")]


def age(config: MessagingConfig, name: str, info: _Told, _server: _Told) -> Iterator[Finding]:
    """How long a stream keeps messages, against the time that retries take and what is configured."""
    kept, needed = info["config"].get("max_age", 0) / 1e9, retries_secs(config) + config.nats.ack_wait_ms / 1000
    wanted = config.nats.stream_max_age_secs
    mend = f"nats stream edit {name} --max-age {_age(config)}s -f"
    if 0 < kept <= needed:
        yield broken(f"{name} keeps messages {spoken(kept)}, and retries may take {spoken(needed)}", mend)
    elif kept and (wanted == 0 or kept < wanted):
        configured = spoken(wanted) if wanted else "for ever"
        yield warning(f"{name} keeps messages {spoken(kept)}, configured is {configured}", mend)
    else:
        yield ok(f"{name} keeps messages {spoken(kept) if kept else 'for ever'}")


def _age(config: MessagingConfig) -> int:
    """How long a stream should keep messages, in seconds; 0 is for ever."""
    wanted, needed = config.nats.stream_max_age_secs, retries_secs(config) + config.nats.ack_wait_ms / 1000
    return wanted if wanted == 0 or wanted > needed else _A_WEEK


def duplicates(config: MessagingConfig, name: str, info: _Told, _server: _Told) -> Iterator[Finding]:
    """The window in which a message that is sent again is stored once, against how long it may be sent again."""
    window = info["config"].get("duplicate_window", 0) / 1e9
    sure, needed = resend_secs(config), repeat_secs(config)
    longer, kept = ceil(max(needed, config.nats.duplicate_window_secs)), info["config"].get("max_age", 0) / 1e9
    # The server refuses a window that is longer than messages are kept.
    aged = f" --max-age {max(_age(config), longer) if _age(config) else 0}s" if 0 < kept < longer else ""
    mend = f"nats stream edit {name}{aged} --dupe-window {longer}s -f"
    if window < sure:
        what = f"{name}: the duplicate window is {spoken(window)}, and a publish is sent again for {spoken(sure)}"
        yield broken(what, mend)
    elif window < needed:
        what = f"{name}: the duplicate window is {spoken(window)}, and a message may come again within {spoken(needed)}"
        yield warning(what, mend)
    else:
        yield ok(f"{name}: the duplicate window is {spoken(window)}, needed are {spoken(needed)}")
