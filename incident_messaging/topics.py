"""Topic names: what is allowed, the prefix, wildcards, group names on the broker. Pure.

Wildcards are those of NATS (https://docs.nats.io/nats-concepts/subjects): ``*`` stands for one
level, a last ``>`` for one or more.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

from incident_messaging.errors import ConfigurationError

#: Kafka's limit for a topic's name, which is held on both brokers.
MAX_LENGTH = 249

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_PATTERN = re.compile(r"([A-Za-z0-9_-]+|\*)(\.([A-Za-z0-9_-]+|\*))*(\.>)?|>")
_ALLOWED = "levels of A-Z a-z 0-9 _ - joined by dots"


def is_pattern(topic: str) -> bool:
    """Whether a topic holds a wildcard."""
    return "*" in topic or ">" in topic


@lru_cache(maxsize=4096)
def full_name(prefix: str, topic: str) -> str:
    """The name on the broker of a topic that is published to.

    Raises:
        ConfigurationError: It has other characters than allowed, an empty level, a wildcard, or is
            longer than 249 characters with the prefix.
    """
    return _checked(prefix, topic, _NAME, _ALLOWED)


@lru_cache(maxsize=4096)
def full_pattern(prefix: str, topic: str) -> str:
    """The name on the broker of a topic or pattern that is subscribed to.

    Raises:
        ConfigurationError: As for `full_name`; wildcards must be whole levels, ``>`` the last one.
    """
    return _checked(prefix, topic, _PATTERN, f"{_ALLOWED}; * for one level, > for the last ones")


def _checked(prefix: str, topic: str, allowed: re.Pattern[str], words: str) -> str:
    if not isinstance(topic, str) or allowed.fullmatch(topic) is None:
        raise ConfigurationError(f"topic {topic!r:.300} is not allowed: {words}")
    topic = str.__str__(topic)  # of a text enum's member the value, as of the text that equals it
    name = f"{prefix}.{topic}" if prefix else topic
    if len(name) > MAX_LENGTH:
        raise ConfigurationError(
            f"topic {name[:60]!r}... has {len(name)} characters with its prefix, allowed are {MAX_LENGTH}"
        )
    return name


def is_name(name: str) -> bool:
    """Whether a name, prefix included, is one that `full_name` would let through."""
    return len(name) <= MAX_LENGTH and _NAME.fullmatch(name) is not None


def short_name(prefix: str, name: str) -> str:
    """A broker's name without the prefix: what users, metrics and errors see."""
    return name[len(prefix) + 1 :] if prefix and name.startswith(f"{prefix}.") else name


def regex(pattern: str) -> re.Pattern[str]:
    """The regular expression for the names that a pattern stands for, to be used with ``fullmatch``.

    Names that begin with ``_`` (Kafka's own) match no wildcard.
    """
    wild = {"*": "[^.]+", ">": ".+"}
    guard = "(?!_)" if pattern[:1] in wild else ""
    return re.compile(guard + r"\.".join(wild.get(level) or re.escape(level) for level in pattern.split(".")))


def place_name(group: str, topic: str, *, exact: bool = False) -> str:
    """Kafka's ``group.id`` for the members of a group on one topic or pattern (prefixed).

    With ``exact`` it is the group alone, to share the place with other services.
    """
    return group if exact else f"{group}:{topic}"


def durable_name(group: str, topic: str) -> str:
    """The JetStream durable for the members of a group on one topic or pattern (prefixed).

    A durable's name takes no dots, wildcards or blanks, so a readable part is made of what is
    allowed, and a hash of both names keeps two apart that read the same.
    """
    digest = hashlib.sha256(f"{group}\n{topic}".encode()).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", topic.replace("*", "any").replace(">", "all"))[:120]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', group)[:80]}-{readable}-{digest}"
