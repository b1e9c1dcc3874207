"""Which topics exist, and making those that do not.

A name that was seen is remembered: publishing to it asks nobody. Safe to use from several threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._metadata import ClusterMetadata
from confluent_kafka.cimpl import NewTopic

from incident_messaging.backends.kafka import errors, settings
from incident_messaging.config import KafkaConfig

#: ``list_topics`` of whichever client is at hand.
Lister = Callable[..., ClusterMetadata]


class Topics:
    """The topics of a broker, as far as they were asked for."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._known: set[str] = set()

    def known(self, name: str) -> bool:
        """Whether the topic was seen; it may have been deleted since."""
        return name in self._known

    def forget(self, name: str) -> None:
        """The topic turned out to be gone."""
        self._known.discard(name)

    def ensure(self, name: str, list_topics: Lister, timeout: float) -> bool:
        """Look for a topic, and make it if that is allowed; false if it does not exist.

        Raises:
            KafkaException: The broker did not answer within the time, does not let it be made, or may have it and
                does not show it to the user.
        """
        if name in self._known:
            return True
        # All of them, since asking for one makes it where the broker makes topics by itself.
        self._known |= names(list_topics(timeout=timeout))
        if name not in self._known and self._config.create_topics:
            self._make(name, timeout)
            list_topics(name, timeout=timeout)  # a client that has met it missing believes that for a while
        elif name not in self._known:
            self._must_be_shown(name, timeout)
        return name in self._known

    def _make(self, name: str, timeout: float) -> None:
        partitions = self._config.partitions or -1  # -1 is the broker's default, for both
        topic = NewTopic(name, num_partitions=partitions, replication_factor=self._config.replication_factor or -1)
        client = AdminClient(settings.admin(self._config))  # a name of its own: it answers nothing once it is dropped
        try:
            _answer(client.create_topics([topic], request_timeout=timeout)[name], timeout)
        except KafkaException as exc:
            if errors.of(exc).code() != KafkaError.TOPIC_ALREADY_EXISTS:  # somebody else was faster
                raise
        finally:
            del client  # the error's traceback would keep it, and its threads, until the collector comes by
        self._known.add(name)

    def _must_be_shown(self, name: str, timeout: float) -> None:
        """Tell a topic that does not exist from one without a right to it, which a list of topics leaves out."""
        client = AdminClient(settings.admin(self._config))
        try:
            _answer(client.describe_topics(TopicCollection([name]), request_timeout=timeout)[name], timeout)
        except KafkaException as exc:
            if errors.of(exc).code() in errors.DENIED:
                raise
        finally:
            del client


def _answer(future: Future[Any], timeout: float) -> None:
    try:
        future.result(timeout + 1.0)
    except FutureTimeout as exc:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer to a question about a topic")) from exc
    finally:
        del future  # it holds its error, whose traceback would hold it


def names(metadata: ClusterMetadata) -> set[str]:
    """The topics of an answer that can be used."""
    return {name for name, topic in metadata.topics.items() if topic.error is None}
