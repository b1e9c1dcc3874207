"""What traffic on a topic of one's own leaves on the broker, and taking it away again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from incident_messaging.backends.kafka import errors, settings
from incident_messaging.config import MessagingConfig
from incident_messaging.errors import MessagingError

_GONE: Final = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.GROUP_ID_NOT_FOUND})


class Traces:
    """Made before the traffic begins.

    Args:
        config: How Kafka is reached.
        topic: The topic, prefix included; nobody else uses it.
    """

    def __init__(self, config: MessagingConfig, topic: str) -> None:
        self._config = config
        self._topic = topic
        self._patience = config.subscribe_timeout_ms / 1000

    def remove(self, groups: Sequence[str]) -> list[str]:
        """Delete the topic and its groups (at least one, by its name on the broker); their clients are closed.

        Returns:
            What is left, in words.
        """
        client = None
        try:
            client = AdminClient(settings.admin(self._config.kafka))
            left = _left("group", client.delete_consumer_groups(list(groups), request_timeout=self._patience))
            return left + _left("topic", client.delete_topics([self._topic], request_timeout=self._patience))
        except (KafkaException, MessagingError) as exc:
            why = errors.of(exc).str() if isinstance(exc, KafkaException) else str(exc)
            return [f"topic {self._topic} and its groups {', '.join(groups)}: {why}"]
        finally:
            del client  # an error's traceback would keep it, and its threads, until the collector comes by


def _left(kind: str, answers: Mapping[str, Future[Any]]) -> list[str]:
    """What is left after a request, in words; each has its own time, so its answer comes."""
    waiting = dict(answers)  # the client looks into its own for whom to answer
    del answers
    left = []
    while waiting:
        name, answer = waiting.popitem()
        try:
            answer.result()
        except KafkaException as exc:
            if errors.of(exc).code() not in _GONE:
                left.append(f"{kind} {name}: {errors.of(exc).str()}")
        finally:
            del answer  # it holds its error, whose traceback would hold it
    return left
