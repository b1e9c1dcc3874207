"""Passwords and certificates that change on disk, under load: nothing is restarted, and nothing lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import Certificate, Kit
from files import write
from kafka_secured import OTHER, SecuredKafka
from waiting import until

from incident_messaging import Delivery, MessagingService

Make = Callable[..., MessagingService]
PATIENCE = 25.0


class Load:
    """Messages with one key that are published all the time, and what a group and a broadcast see of them."""

    def __init__(self, service: MessagingService, topic: str) -> None:
        self._service, self._topic = service, topic
        self._futures: list[Future[Any]] = []
        self._end = threading.Event()
        self.handled: list[int] = []
        self.seen: list[int] = []

    @contextmanager
    def running(self) -> Iterator[Load]:
        def note(numbers: list[int]) -> Callable[[Delivery[Any]], None]:
            return lambda delivery: numbers.append(delivery.payload["n"])

        publisher = threading.Thread(target=self._publish, daemon=True)
        with (
            self._service,
            self._service.subscribe(self._topic, callback=note(self.handled), group="g"),
            self._service.subscribe(self._topic, callback=note(self.seen), broadcast=True),
        ):
            publisher.start()
            try:
                yield self
            finally:
                self._end.set()
                publisher.join()
            for future in self._futures:
                future.result(PATIENCE)
            assert until(lambda: set(range(self.published)) <= set(self.handled), PATIENCE), self.missing(self.handled)
            assert until(lambda: set(range(self.published)) <= set(self.seen), PATIENCE), self.missing(self.seen)
        # What was on its way when the connection broke is sent again, and may have been stored already.
        assert list(dict.fromkeys(self.seen)) == list(range(self.published)), "one key keeps its order"

    @property
    def published(self) -> int:
        return len(self._futures)

    def flows(self) -> bool:
        """Whether messages that are published from now on arrive."""
        begun = self.published
        return until(lambda: self._last(self.handled) > begun and self._last(self.seen) > begun, PATIENCE)

    @staticmethod
    def _last(numbers: list[int]) -> int:
        return numbers[-1] if numbers else -1

    def missing(self, there: list[int]) -> str:
        missing = sorted(set(range(self.published)) - set(there))
        return f"{len(missing)} of {self.published} are missing, the first are {missing[:5]}"

    def _publish(self) -> None:
        while not self._end.wait(0.002):
            number = {"n": self.published}
            self._futures.append(self._service.publish_nowait(self._topic, number, key="k", block=PATIENCE))


@pytest.fixture
def load(on_kafka: Make, secured_kafka: SecuredKafka, request: pytest.FixtureRequest) -> Callable[..., Load]:
    topic = f"r-{request.node.name}"[:60].strip("-[]").replace("[", "-")
    secured_kafka.make(f"secured.{topic}", "secured.dead-letter")

    def start(listener: str, **kafka: Any) -> Load:
        return Load(on_kafka(listener, session_timeout_ms=2000, **kafka), topic)

    return start


def test_a_password(
    load: Callable[..., Load], secured_kafka: SecuredKafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker asks for it again every two seconds, and has the new one before it is on disk."""
    file = tmp_path / "password"
    file.write_text("the first password")
    secured_kafka.set_password(OTHER, "the first password")
    caplog.set_level("INFO")
    login = {"sasl_mechanism": "SCRAM-SHA-256", "sasl_username": OTHER, "sasl_password": None}
    with load("REAUTH", sasl_password_file=file, **login).running() as running:
        assert running.flows()
        secured_kafka.set_password(OTHER, "the second password")
        assert until(lambda: "Kafka connection lost" in caplog.text, PATIENCE), "it is refused"
        write(file, "the second password\n")
        assert running.flows()
        used = "has changed and is used from now on"
        assert until(lambda: caplog.text.count(used) == 3, PATIENCE), "the producer and two consumers"


def test_a_certificate(
    load: Callable[..., Load],
    secured_kafka: SecuredKafka,
    certificates: Kit,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """First another one of the same authority; then the broker trusts another authority before ours has changed."""
    used = Certificate(tmp_path / "client.pem", tmp_path / "client.key")
    used.replace_by(certificates.client)
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(certificates.ca_file.read_bytes())
    caplog.set_level("INFO")
    with load(
        "ROTATED", ssl_cert_file=used.cert_file, ssl_key_file=used.key_file, ssl_ca_file=ca_file
    ).running() as running:
        assert running.flows()
        renewed = certificates.authority.issue("client", hosts=())
        write(used.cert_file, renewed.cert_file.read_text())
        half = "kafka.ssl_key_file is not the key of kafka.ssl_cert_file"
        assert until(lambda: half in caplog.text, PATIENCE)
        write(used.key_file, renewed.key_file.read_text())
        assert until(lambda: "the producer has read them anew" in caplog.text, PATIENCE)
        assert running.flows()

        secured_kafka.show("ROTATED", certificates.others_server, certificates.other)
        secured_kafka.reload("ROTATED")
        assert until(lambda: "Kafka connection lost" in caplog.text, PATIENCE)
        write(ca_file, certificates.other.ca_file.read_text())
        used.replace_by(certificates.others_client)
        assert running.flows()
        anew = "has read them anew"  # said behind the change, which messages need not wait for
        assert until(lambda: caplog.text.count(anew) >= 2 + 2, PATIENCE), "the producer twice, each consumer once"
