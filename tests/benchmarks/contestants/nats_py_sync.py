"""nats-py-sync: nats-py behind a loop that runs for as long as each call. It has no flush, and no JetStream publish."""

from __future__ import annotations

import json
import time

import nats_sync

from .child import envelopes, full, ready, serve


class NatsPySync:
    def __init__(self, address: str, **_: object) -> None:
        self._client = nats_sync.connect(address)

    def publish_nowait(self, topic: str, count: int) -> float:
        subject, given = full(topic), ready(envelopes(count))
        begun = time.perf_counter()
        for event in given:
            self._client.publish(subject, json.dumps(event).encode())
        return time.perf_counter() - begun


if __name__ == "__main__":
    serve(NatsPySync, "nats-py-sync", "nats-py")
