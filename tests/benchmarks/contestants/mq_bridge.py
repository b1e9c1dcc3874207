"""mq-bridge: a core in Rust behind a synchronous Python API."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import mq_bridge

from .child import PATIENCE, STREAM, Stopwatch, envelopes, full, key_of, ready, serve, shares, together

#: Messages of one ``send_batch``.
BATCH = 5000


class MqBridge:
    def __init__(self, broker: str, address: str, delivery: str = "jetstream") -> None:
        self._broker = broker
        self._core = delivery == "core"
        self._address = address
        self._publishers: dict[str, mq_bridge.Publisher] = {}

    def publish_batch(self, topic: str, count: int) -> float:
        publisher, given = self._publisher(topic), ready(envelopes(count))
        begun = time.perf_counter()
        for first in range(0, count, BATCH):
            publisher.send_batch([self._message(event) for event in given[first : first + BATCH]])
        return time.perf_counter() - begun

    publish_nowait = publish_batch

    def publish_each(self, topic: str, count: int, workers: int) -> float:
        publisher, given = self._publisher(topic, linger=0), ready(envelopes(count // workers + 1))

        def publish(share: int) -> None:
            for event in given[:share]:
                publisher.send(self._message(event))

        return together(publish, shares(count, workers))

    def consume(self, topic: str, count: int) -> float:
        watch, name = Stopwatch(count), uuid.uuid4().hex
        ends = time.monotonic() + PATIENCE * 3
        with mq_bridge.Consumer.from_config(self._source(topic, name)) as consumer:
            while watch.got < count:
                messages = consumer.poll(max=min(500, count - watch.got), timeout_ms=1000)
                for message in messages:
                    message.json()
                    watch.one()
                if messages:
                    consumer.commit()
                elif time.monotonic() > ends:
                    raise RuntimeError(f"only {watch.got} of {count} messages came")
        return watch.seconds

    def _publisher(self, topic: str, linger: int = 5) -> mq_bridge.Publisher:
        if topic not in self._publishers:
            self._publishers[topic] = mq_bridge.Publisher.from_config(self._sink(topic, linger))
        return self._publishers[topic]

    def _sink(self, topic: str, linger: int) -> dict[str, Any]:
        if self._broker == "nats":
            return {"nats": self._nats(topic)}
        options = [
            ["enable.idempotence", "true"], ["acks", "all"], ["compression.type", "snappy"], ["linger.ms", str(linger)]
        ]  # fmt: skip
        own = {"url": self._address, "topic": full(topic), "create_topic": False, "partition_key": "key"}
        return {"kafka": own | {"producer_options": options}}

    def _source(self, topic: str, name: str) -> dict[str, Any]:
        if self._broker == "nats":
            # A durable's name is made of stream and subject, so that a second turn would go on where the first ended.
            return {"nats": self._nats(topic) | {"subscriber_mode": True, "deliver_policy": "all"}}
        return {"kafka": {"url": self._address, "topic": full(topic), "group_id": name}}

    def _nats(self, topic: str) -> dict[str, Any]:
        return {"url": self._address, "subject": full(topic), "stream": STREAM, "no_jetstream": self._core}

    def _message(self, event: dict[str, Any]) -> mq_bridge.Message | bytes:
        # Measured beside it: its own Message.from_json and send_json are slower.
        body = json.dumps(event).encode()
        return body if self._broker == "nats" else mq_bridge.Message(body, {"key": key_of(event)})


if __name__ == "__main__":
    serve(MqBridge, "mq-bridge")
