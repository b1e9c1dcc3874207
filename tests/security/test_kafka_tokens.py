"""OAUTHBEARER on a real Kafka: who asks the source of tokens, and what becomes of one that fails or takes its time."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from certificates import Kit
from files import write
from kafka_secured import REAUTH_MS, SecuredKafka, Tokens, goes_through
from waiting import takes, until

from incident_messaging import ConnectionFailed, MessagingService, SubscribeFailed

Make = Callable[..., MessagingService]
PATIENCE = 40.0
#: What a call may take that a source keeps waiting, and what any call may take beyond, on a busy machine.
SHORT, GRACE = 0.5, 8.0


class Source:
    """Tokens that are given while the gate is open, and who has asked for them."""

    def __init__(self, **tokens: Any) -> None:
        self._tokens = Tokens(**tokens)
        self.gate = threading.Event()
        self.gate.set()
        self.fails: Exception | None = None
        self.asked_by: list[str] = []

    def __call__(self) -> tuple[str, float]:
        self.asked_by.append(threading.current_thread().name)
        assert self.gate.wait(2 * PATIENCE)
        if self.fails is not None:
            raise self.fails
        return self._tokens()

    def fields(self, **more: Any) -> dict[str, Any]:
        return {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token": self, **more}


def test_each_client_asks_and_never_on_a_thread_with_other_work(on_kafka: Make) -> None:
    source = Source()
    goes_through(on_kafka("SASL_TLS", **source.fields()))
    assert len(source.asked_by) >= 3, "the producer, what makes the topic, and the consumer each have one of their own"
    ours = {name for name in source.asked_by if name.startswith(("incident-messaging", "Main"))}
    assert ours == {"incident-messaging-kafka-token"}, "the others are librdkafka's"


def test_tokens_are_fetched_anew_before_they_end(on_kafka: Make, secured_kafka: SecuredKafka) -> None:
    """The broker asks again every two seconds, tokens are good for as long, and nobody calls the service."""
    tokens = Tokens(seconds=REAUTH_MS / 1000)
    secured_kafka.make("secured.refreshed", "secured.dead-letter")
    service = on_kafka("REAUTH", sasl_mechanism="OAUTHBEARER", sasl_oauth_token=tokens)
    seen: list[Any] = []
    with service, service.subscribe("refreshed", callback=lambda delivery: seen.append(delivery.payload), group="g"):
        service.publish("refreshed", {"n": 0})
        asked = tokens.asked
        assert until(lambda: tokens.asked >= asked + 4, PATIENCE), "twice for producer and consumer"
        service.publish("refreshed", {"n": 1})
        assert until(lambda: {"n": 1} in seen, PATIENCE)
        assert service.health().ok


def test_a_source_that_fails_is_asked_again(
    on_kafka: Make, secured_kafka: SecuredKafka, caplog: pytest.LogCaptureFixture
) -> None:
    """At a first connection it is an error at once; later what is published waits, ten seconds at most."""
    secured_kafka.make("secured.failing", "secured.dead-letter")
    source = Source(seconds=REAUTH_MS / 1000)
    service = on_kafka("REAUTH", **source.fields())
    source.fails = OSError("the identity provider is away")
    for call in (
        lambda: service.connect(PATIENCE),
        lambda: service.publish("failing", {}, timeout=PATIENCE),
        lambda: service.subscribe("failing", timeout=PATIENCE),
    ):
        with takes(at_most=PATIENCE / 4), pytest.raises(ConnectionFailed, match="OSError: the identity") as caught:
            call()
        assert caught.value.code == "unauthorized"
    source.fails = None
    with service.subscribe("failing", start="latest", timeout=PATIENCE) as subscription:
        service.publish("failing", {"n": 0}, timeout=PATIENCE)
        assert subscription.next(PATIENCE) is not None
        source.fails = OSError("the identity provider is away")
        assert until(lambda: caplog.text.count("sasl_oauth_token gave no token: OSError") >= 2, PATIENCE), "of two"
        source.fails = None
        service.publish("failing", {"n": 1}, timeout=PATIENCE)
        delivery = subscription.next(PATIENCE)
        assert delivery is not None
        assert delivery.payload == {"n": 1}


def test_a_source_that_takes_its_time_holds_up_no_call(on_kafka: Make) -> None:
    source = Source()
    source.gate.clear()
    service = on_kafka("SASL_BARE", **source.fields())
    calls = (
        lambda: service.connect(SHORT),
        lambda: service.publish("slow", {}, timeout=SHORT),
        lambda: service.subscribe("slow", timeout=SHORT),
    )
    for call in calls:
        with takes(at_most=SHORT + GRACE), pytest.raises(ConnectionFailed, match="not returned a token") as caught:
            call()
        assert caught.value.code == "unauthorized"
    source.gate.set()
    service.publish("slow", {}, timeout=PATIENCE)
    source.gate.clear()
    with takes(at_most=SHORT + GRACE), pytest.raises((SubscribeFailed, TimeoutError), match="sasl_oauth_token"):
        service.subscribe("slow", timeout=SHORT)
    source.gate.set()
    service.subscribe("slow", timeout=PATIENCE).close()


def test_a_source_that_takes_its_time_holds_up_neither_reports_nor_messages(
    on_kafka: Make, certificates: Kit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A new client is made, since certificates have changed."""
    caplog.set_level("INFO")
    trusted = Path(shutil.copy(certificates.ca_file, tmp_path / "ca.pem"))
    source = Source()
    with on_kafka("SASL_TLS", **source.fields(ssl_ca_file=trusted)) as service:
        with service.subscribe("renewed", group="g") as subscription:
            service.publish("renewed", {"n": 0})
            asked = len(source.asked_by)
            source.gate.clear()
            write(trusted, trusted.read_text() + "\n")
            assert until(lambda: len(source.asked_by) > asked, PATIENCE), "the new client wants one"
            for number in range(50):
                service.publish("renewed", {"n": number}, timeout=PATIENCE / 2)
                delivery = subscription.next(PATIENCE / 2)
                assert delivery is not None
                time.sleep(0.01)
            source.gate.set()
            assert until(lambda: "the producer has read them anew" in caplog.text, PATIENCE)
            service.publish("renewed", {"n": 50})


def test_a_refresh_that_hangs_holds_up_no_close(on_kafka: Make) -> None:
    """A client waits for its threads when it is freed: one of them is in the source."""
    source = Source(seconds=REAUTH_MS / 1000)
    service = on_kafka("SASL_BARE", **source.fields())
    service.publish("hung", {}, timeout=PATIENCE)
    asked = len(source.asked_by)
    source.gate.clear()
    assert until(lambda: len(source.asked_by) > asked, PATIENCE), "librdkafka wants the next one"
    with takes(at_most=1.0 + GRACE):
        service.close(1.0)
    source.gate.set()
