"""What a user of NATS must be allowed to publish to, for what the SDK does. Pure; as docs/nats_security.rst has it.

Each subject that is asked for stands beside the rule that allows it in a server's configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from incident_messaging.backends.nats.marks import BUCKET
from incident_messaging.config import MessagingConfig
from incident_messaging.topics import durable_name, full_name

#: The stream of the key-value bucket that keeps the attempts at messages whose process died.
BUCKET_STREAM: Final = f"KV_{BUCKET}"
#: What stands for all topics with the prefix, and for any group, where none is named. Nothing of it comes to be.
ANY: Final = "doctor"
_ATTEMPTS: Final = "after a crash, attempts at its messages are counted anew"


def one_of(pattern: str) -> str:
    """A subject that a pattern stands for."""
    return ".".join(ANY if level in ("*", ">") else level for level in pattern.split("."))


def for_subscribing(config: MessagingConfig, topic: str, streams: Iterable[str]) -> dict[str, str]:
    """What a group's subscription to a topic cannot do without."""
    durable = durable_name(config.kafka.group_id, topic)
    rules: dict[str, str] = {}
    for stream in streams:
        rules[f"$JS.API.STREAM.INFO.{stream}"] = f"$JS.API.STREAM.INFO.{stream}"
        rules[f"$JS.API.CONSUMER.CREATE.{stream}.{durable}.{one_of(topic)}"] = f"$JS.API.CONSUMER.CREATE.{stream}.>"
        rules[f"$JS.API.CONSUMER.INFO.{stream}.{durable}"] = f"$JS.API.CONSUMER.INFO.{stream}.*"
        rules[f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"] = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*"
        rules[f"$JS.ACK.{stream}.{ANY}.1.1.1.1.1"] = f"$JS.ACK.{stream}.>"
    if config.enable_dlq:
        letters = full_name(config.topic_prefix, config.dlq_topic)
        rules[letters] = letters
    return rules


def welcome(streams: Iterable[str]) -> Mapping[str, tuple[str, str]]:
    """What a subscription does better with: beside the rule, what goes on without it."""
    rules = {
        f"$JS.API.STREAM.INFO.{BUCKET_STREAM}": (f"$JS.API.STREAM.INFO.{BUCKET_STREAM}", _ATTEMPTS),
        f"$JS.API.STREAM.MSG.GET.{BUCKET_STREAM}": (f"$JS.API.STREAM.MSG.GET.{BUCKET_STREAM}", _ATTEMPTS),
        f"$KV.{BUCKET}.{ANY}": (f"$KV.{BUCKET}.>", _ATTEMPTS),
    }
    for stream in streams:
        rule = f"$JS.API.CONSUMER.DELETE.{stream}.*"
        rules[rule.replace("*", ANY)] = (rule, "a broadcast leaves its consumer to the server for 30 s")
    return rules
