"""The contract for looking after groups: where they stand on a broker, and putting a place elsewhere.

Beside the traffic of `base`: a one-off connection of its own, used by one thread. What is changed is planned first
and done later, exactly as planned, so that it can be shown and asked about in between.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import attrs

from incident_messaging import topics
from incident_messaging.deadline import Deadline
from incident_messaging.errors import SubscribeFailed

#: Where a place is put.
Target = Literal["earliest", "latest"] | datetime


@attrs.frozen(kw_only=True)
class GroupPlace:
    """The place that a group has on a broker.

    Attributes:
        backend: ``nats`` or ``kafka``.
        name: Its name on the broker: a Kafka ``group.id``, a JetStream durable.
        group: The group, where the place is one of this SDK; ``None`` for another program's. On JetStream a group
            whose name has other characters than ``A-Z a-z 0-9 _ -`` is shown as its durable's name begins.
        topics: What it reads, full names or patterns on the broker; one for a place of this SDK.
        streams: The streams that keep it (JetStream).
        members: How many members there are, as far as the broker says; ``None`` where it does not count them.
        active: Whether somebody is a member; ``None`` where the broker does not know.
        lag: Messages that are there for it and not settled.
        unsettled: Those of them that were handed out; ``None`` where only members know (Kafka).
        oldest: When the oldest of them was stored, in Unix seconds; ``None`` where there is none or it was not asked.
    """

    backend: str
    name: str
    group: str | None
    topics: Sequence[str]
    streams: Sequence[str] = ()
    members: int | None = None
    active: bool | None = None
    lag: int = 0
    unsettled: int | None = None
    oldest: float | None = None


@attrs.frozen(kw_only=True)
class Move:
    """A place that is to be put somewhere, or was.

    Attributes:
        backend: ``nats`` or ``kafka``.
        name: The place's name on the broker.
        group: The group.
        topic: The full topic or pattern.
        begins: Where it will begin, a broker's position for each stream or partition.
        before: The lag where it is now; ``None`` if it has no place yet.
        after: The lag from where it will begin.
        skipped: Messages that the group has not settled, and will never see.
        again: Messages that it has settled, and will see again; at most so many.
        remarks: What else whoever decides should know.
        steps: What the broker's own code is to do.
    """

    backend: str
    name: str
    group: str
    topic: str
    begins: Sequence[str]
    before: int | None
    after: int
    skipped: int = 0
    again: int = 0
    remarks: Sequence[str] = ()
    steps: Any = attrs.field(default=None, repr=False)


class BrokerGroups(ABC):
    """The groups of one broker; an answer is waited for ``subscribe_timeout_ms``, a member's sign of life longer.

    Every method raises, beside its own errors:
        ConnectionFailed: There is no connection to be had.
        Timeout: The broker has stopped answering.
        SubscribeFailed: It does not allow it (``denied``).
    """

    @abstractmethod
    def connect(self, deadline: Deadline) -> None:
        """Return when the broker has answered."""

    @abstractmethod
    def places(self, *, foreign: bool, ages: bool) -> list[GroupPlace]:
        """The groups that have a place on topics under the prefix, by name.

        Args:
            foreign: Whether to look for those of other programs too.
            ages: Whether to look for the oldest message of each.
        """

    @abstractmethod
    def plan_reset(self, group: str, topic: str, target: Target) -> Move:
        """How a group's place on a full topic or pattern is put to the start that a subscription would be given.

        Raises:
            SubscribeFailed: Somebody is a member (``overlap``), or the topic is not there (``no_topic``).
        """

    @abstractmethod
    def plan_adopt(self, existing: str, group: str, topic: str) -> Move:
        """How a group gets the place that another program has, which keeps it.

        Raises:
            SubscribeFailed: Somebody is a member of either, the other one has no place, or the group has one
                (``overlap``); the topic is not there (``no_topic``).
        """

    @abstractmethod
    def apply(self, move: Move) -> None:
        """Do what was planned.

        Raises:
            SubscribeFailed: Somebody has become a member meanwhile (``overlap``).
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the connection. Idempotent, never raises."""


def has_members(name: str, words: str, backend: str) -> SubscribeFailed:
    """The refusal to touch the place of somebody who is at work."""
    text = f"{name} has members: {words}; stop them first, or they go on from where they are"
    return SubscribeFailed(text, code="overlap", backend=backend)


def is_under(prefix: str, topic: str) -> bool:
    """Whether a full topic or pattern is one of the topic prefix."""
    return not prefix or topics.short_name(prefix, topic) != topic
