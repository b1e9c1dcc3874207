"""The groups of the configured brokers, for those who look after them: lag, reset, adoption.

Needs no service: it connects by itself, joins no group and takes no message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from importlib import import_module

from incident_messaging import topics
from incident_messaging.backends.groups import BrokerGroups, GroupPlace, Move, Target
from incident_messaging.config import MessagingBackend, MessagingConfig
from incident_messaging.deadline import Deadline
from incident_messaging.errors import BackendUnavailable, ConfigurationError

__all__ = ["GroupPlace", "Groups", "Move", "Target", "opened"]

_CLASSES = {
    MessagingBackend.NATS: ("incident_messaging.backends.nats.groups", "NatsGroups"),
    MessagingBackend.KAFKA: ("incident_messaging.backends.kafka.groups", "KafkaGroups"),
}


@contextmanager
def opened(config: MessagingConfig, backend: MessagingBackend | None = None) -> Iterator[Groups]:
    """The groups of the configured brokers, connected; of two brokers one, where ``backend`` says so.

    Raises:
        BackendUnavailable: Messaging is disabled.
        ConfigurationError: Nothing keeps places here, or a broker is not configured.
        ConnectionFailed: A broker cannot be had.
    """
    with ExitStack() as brokers:
        found = {one: brokers.enter_context(closing(_made(one, config))) for one in _chosen(config, backend)}
        for broker in found.values():
            broker.connect(Deadline.after(config.connect_timeout_ms / 1000))
        yield Groups(config, found)


class Groups:
    """The groups of connected brokers; see `BrokerGroups` for what every method may raise."""

    def __init__(self, config: MessagingConfig, brokers: Mapping[MessagingBackend, BrokerGroups]) -> None:
        self._config = config
        self._brokers = brokers

    def places(
        self, *, group: str | None = None, topic: str | None = None, foreign: bool = False, ages: bool = False
    ) -> list[GroupPlace]:
        """Where groups stand, by broker and name.

        Args:
            group: Only of this group, or of another program's under this name on the broker.
            topic: Only on this topic or pattern, without prefix.
            foreign: Whether those of other programs are wanted too.
            ages: Whether to look for the oldest message of each.
        """
        full = None if topic is None else topics.full_pattern(self._config.topic_prefix, topic)
        found = []
        for broker in self._brokers.values():
            for place in broker.places(foreign=foreign or group is not None, ages=ages):
                if (full is None or full in place.topics) and (group is None or _is_called(place, group)):
                    found.append(place)
        return found

    def plan_reset(self, group: str, topic: str, target: Target) -> Move:
        """What `apply` will do to put a group's place elsewhere; of two brokers on that of subscriptions."""
        return self._broker().plan_reset(_name(group), self._full(topic), target)

    def plan_adopt(self, existing: str, group: str, topic: str) -> Move:
        """What `apply` will do to give a group the place of another program's; of two brokers as `plan_reset`."""
        return self._broker().plan_adopt(_name(existing), _name(group), self._full(topic))

    def apply(self, move: Move) -> None:
        """Do what was planned."""
        self._brokers[MessagingBackend(move.backend)].apply(move)

    def _broker(self) -> BrokerGroups:
        only = next(iter(self._brokers.values()))
        return only if len(self._brokers) == 1 else self._brokers[self._config.subscribe_backend]

    def _full(self, topic: str) -> str:
        return topics.full_pattern(self._config.topic_prefix, topic)


def _chosen(config: MessagingConfig, wanted: MessagingBackend | None) -> Sequence[MessagingBackend]:
    if not config.enabled:
        raise BackendUnavailable("Messaging disabled", code="disabled")
    every = (MessagingBackend.NATS, MessagingBackend.KAFKA)
    configured = every if config.backend is MessagingBackend.BOTH else (config.backend,)
    if wanted is not None and wanted not in configured:
        names = ", ".join(one.value for one in configured)
        raise ConfigurationError(f"backend {wanted.value!r} is not configured: {names}")
    chosen = configured if wanted is None else (wanted,)
    if MessagingBackend.MEMORY in chosen:
        raise ConfigurationError("the memory backend keeps its groups in the process that uses them: nothing to see")
    if MessagingBackend.NATS in chosen and config.nats.delivery == "core":
        raise ConfigurationError("core delivery keeps nothing: its groups have no place")
    return chosen


def _made(backend: MessagingBackend, config: MessagingConfig) -> BrokerGroups:
    module, name = _CLASSES[backend]
    broker: BrokerGroups = getattr(import_module(module), name)(config)
    return broker


def _name(group: str) -> str:
    if not group.strip() or not group.isprintable():
        raise ConfigurationError(f"group {group!r} is not allowed: a name that is not empty")
    return group


def _is_called(place: GroupPlace, group: str) -> bool:
    ours = place.group is not None and place.name == topics.durable_name(group, place.topics[0])
    return ours or group in (place.group, place.name)
