"""Spans of publishes and handlers, and what travels from one to the next, on real brokers."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Producer
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from waiting import until

from incident_messaging import (
    BackendUnavailable,
    Delivery,
    IncidentCreated,
    MessagingConfig,
    MessagingError,
    MessagingService,
    Reject,
    Retry,
    RetryPolicy,
)
from incident_messaging.brokers import KafkaBroker, NatsServer
from incident_messaging.brokers.ports import free_port
from incident_messaging.context import LogFields, correlation_id
from incident_messaging.contrib import otel

PATIENCE = 60.0
#: Two attempts, the second at once.
QUICK = RetryPolicy(max_attempts=2, initial_delay_secs=0.01, jitter=False)

Spans = Callable[[int], list[ReadableSpan]]


@pytest.fixture
def service(nats_server: NatsServer) -> Iterator[MessagingService]:
    """For what has nothing to do with the broker."""
    config = {"backend": "nats", "nats": {"servers": [nats_server.url]}, "topic_prefix": f"otel-{uuid4().hex[:10]}"}
    with MessagingService(MessagingConfig.from_mapping(config)) as service:
        yield service


@pytest.fixture(params=["nats", "kafka"])
def each(request: pytest.FixtureRequest, nats_server: NatsServer, kafka_broker: KafkaBroker) -> Iterator[Any]:
    """For what is to be so on both."""
    config = {
        "backend": request.param,
        "nats": {"servers": [nats_server.url]},
        "kafka": {"bootstrap_servers": kafka_broker.bootstrap_servers},
        "topic_prefix": f"otel-{uuid4().hex[:10]}",
    }
    with MessagingService(MessagingConfig.from_mapping(config)) as service:
        yield service


@pytest.fixture
def provider() -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    otel.instrument(provider)
    yield provider
    otel.uninstrument()
    provider.shutdown()


@pytest.fixture
def tracer(provider: TracerProvider) -> trace.Tracer:
    """The application's own."""
    return provider.get_tracer("application")


@pytest.fixture
def exporter(provider: TracerProvider) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    """The spans that have ended, by their beginning, once there are so many."""

    def ended(count: int) -> list[ReadableSpan]:
        until(lambda: len(exporter.get_finished_spans()) >= count, PATIENCE)
        found = sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
        assert len(found) == count, [span.name for span in found]
        return found

    return ended


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


# -- one story ------------------------------------------------------------------------------------------


def test_a_publish_its_handler_and_what_that_publishes_are_one_trace(
    each: MessagingService, tracer: trace.Tracer, spans: Spans
) -> None:
    def escalate(delivery: Delivery[IncidentCreated]) -> None:
        each.publish("pages", {"to": "on-call"})

    each.subscribe("incidents.created", IncidentCreated, callback=escalate, group="pager")
    each.subscribe("pages", callback=lambda delivery: None, group="phones")

    with tracer.start_as_current_span("request"):
        each.publish_incident_created("INC-1", "critical", "database", "down")

    request, sent, processed, paged, received = spans(5)
    names = [span.name for span in (request, sent, processed, paged, received)]
    assert names == ["request", "send incidents.created", "process incidents.created", "send pages", "process pages"]
    assert len({span.context.trace_id for span in (request, sent, processed, paged, received) if span.context}) == 1
    assert [parent_of(span) for span in (sent, processed, paged, received)] == [
        id_of(span) for span in (request, sent, processed, paged)
    ]
    assert not any(span.links for span in (sent, processed, paged, received))


def test_spans_say_what_was_sent_and_where_it_lies(each: MessagingService, spans: Spans) -> None:
    handled: list[Delivery[Any]] = []
    each.subscribe("orders", callback=handled.append, group="billing")
    receipt = each.publish("orders", {"n": 1}, key="k-1", correlation_id="story-1")

    sent, processed = spans(2)
    [delivery] = handled
    position = delivery.position
    if each.config.backend.value == "kafka":
        system = {
            "messaging.system": "kafka",
            "messaging.kafka.message.key": "k-1",
            "messaging.kafka.offset": position.offset,
            "messaging.destination.partition.id": str(position.partition),
        }
    else:
        system = {
            "messaging.system": "nats",
            "incident_messaging.key": "k-1",
            "incident_messaging.stream": position.stream,
            "incident_messaging.sequence": position.sequence,
        }
    common = system | {
        "messaging.destination.name": "orders",
        "messaging.message.id": receipt.message_id,
        "messaging.message.conversation_id": "story-1",
        "messaging.message.body.size": len(delivery.body),
    }
    assert (sent.kind, processed.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert sent.attributes == common | {"messaging.operation.name": "send", "messaging.operation.type": "send"}
    assert processed.attributes == common | {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": "billing",
        "incident_messaging.attempt": 1,
    }
    assert {span.status.status_code for span in (sent, processed)} == {StatusCode.UNSET}


def test_the_context_travels_in_headers(each: MessagingService, tracer: trace.Tracer, spans: Spans) -> None:
    with tracer.start_as_current_span("request"):
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        each.publish("orders", {"n": 1}, headers={"mine": "yes"})
        context.detach(token)
    [delivery] = list(each.consume("orders", timeout=PATIENCE, limit=1))

    _, sent = spans(2)
    assert sent.context is not None
    headers = dict(delivery.headers)
    assert headers.pop("traceparent")[:-2] == f"00-{sent.context.trace_id:032x}-{sent.context.span_id:016x}-"
    assert headers == {"mine": "yes", "baggage": "tenant=acme"}


def test_baggage_of_the_publisher_is_there_in_the_handler(service: MessagingService, provider: TracerProvider) -> None:
    seen: list[object] = []
    service.subscribe("orders", callback=lambda delivery: seen.append(baggage.get_baggage("tenant")))
    token = context.attach(baggage.set_baggage("tenant", "acme"))
    service.publish("orders", {"n": 1})
    context.detach(token)
    assert until(lambda: seen == ["acme"], PATIENCE)


def test_the_context_of_a_writer_in_another_language_is_read_however_it_writes_names(
    kafka_broker: KafkaBroker, spans: Spans
) -> None:
    config = {
        "backend": "kafka",
        "kafka": {"bootstrap_servers": kafka_broker.bootstrap_servers},
        "topic_prefix": f"otel-{uuid4().hex[:10]}",
    }
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with MessagingService(MessagingConfig.from_mapping(config)) as service:
        service.subscribe("orders", callback=lambda delivery: None)
        producer = Producer({"bootstrap.servers": kafka_broker.bootstrap_servers})
        headers = {"Traceparent": f"00-{trace_id}-{span_id}-01"}
        producer.produce(f"{config['topic_prefix']}.orders", b'{"n": 1}', headers=headers)
        assert producer.flush(PATIENCE) == 0
        del producer  # and with it its threads
        [processed] = spans(1)
    assert processed.parent is not None
    assert f"{processed.parent.trace_id:032x}-{processed.parent.span_id:016x}" == f"{trace_id}-{span_id}"
    assert processed.parent.is_remote


def test_every_message_of_a_batch_has_a_span_of_its_own(
    each: MessagingService, tracer: trace.Tracer, spans: Spans
) -> None:
    with tracer.start_as_current_span("import"):
        assert each.publish_batch("orders", ({"n": n} for n in range(20))).published == 20
    deliveries = list(each.consume("orders", timeout=PATIENCE, limit=20))

    found = spans(21)
    batch, sent = found[0], found[1:]
    assert {parent_of(span) for span in sent} == {id_of(batch)}
    travelled = {delivery.headers["traceparent"].split("-")[2] for delivery in deliveries}
    assert travelled == {f"{id_of(span):016x}" for span in sent}
    assert len(travelled) == 20


def test_a_publish_to_two_brokers_is_one_span(nats_server: NatsServer, kafka_broker: KafkaBroker, spans: Spans) -> None:
    config = {
        "backend": "both",
        "nats": {"servers": [nats_server.url]},
        "kafka": {"bootstrap_servers": kafka_broker.bootstrap_servers},
        "topic_prefix": f"otel-{uuid4().hex[:10]}",
    }
    with MessagingService(MessagingConfig.from_mapping(config)) as service:
        service.publish("orders", {"n": 1}, key="k")
        [nats] = list(service.consume("orders", backend="nats", timeout=PATIENCE, limit=1))
        [kafka] = list(service.consume("orders", backend="kafka", timeout=PATIENCE, limit=1))

    [sent] = spans(1)
    assert sent.attributes is not None
    assert sent.attributes["messaging.system"] in ("nats,kafka", "kafka,nats")
    assert sent.attributes["messaging.kafka.offset"] == kafka.position.offset
    assert sent.attributes["incident_messaging.sequence"] == nats.position.sequence
    assert nats.headers["traceparent"] == kafka.headers["traceparent"]
    assert nats.headers["traceparent"].split("-")[2] == f"{id_of(sent):016x}"


# -- failures and decisions ---------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["nats", "kafka"])
def test_a_publish_that_fails_is_an_error(backend: str, spans: Spans) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    config = {"backend": backend, "nats": {"servers": [f"nats://{nowhere}"]}, "kafka": {"bootstrap_servers": nowhere}}
    service = MessagingService(MessagingConfig.from_mapping(config))
    with pytest.raises(MessagingError) as failed:
        service.publish("orders", {"n": 1}, timeout=2.0)
    service.close()

    [sent] = spans(1)
    assert sent.attributes is not None
    assert sent.attributes["error.type"] == type(failed.value).__name__
    assert sent.attributes["incident_messaging.error.code"] == failed.value.code
    assert (sent.status.status_code, sent.status.description) == (StatusCode.ERROR, str(failed.value))
    assert [event.name for event in sent.events] == ["exception"]


def test_a_publish_without_a_place_in_the_window_is_an_error(spans: Spans) -> None:
    nowhere = {"servers": [f"nats://127.0.0.1:{free_port()}"]}
    service = MessagingService(MessagingConfig.from_mapping({"backend": "nats", "nats": nowhere, "max_in_flight": 1}))
    waiting = service.publish_nowait("orders", {"n": 1})
    with pytest.raises(BackendUnavailable, match="in flight"):
        service.publish_nowait("orders", {"n": 2})
    service.close(1.0)
    assert waiting.exception(PATIENCE) is not None

    assert [(span.attributes or {})["incident_messaging.error.code"] for span in spans(2)][1] == "window_full"


def test_each_attempt_is_a_span_below_the_same_publish(each: MessagingService, spans: Spans) -> None:
    def fail_once(delivery: Delivery[Any]) -> None:
        if delivery.attempt == 1:
            raise ValueError("not yet")

    each.subscribe("orders", callback=fail_once, retry=QUICK)
    each.publish("orders", {"n": 1})

    sent, first, second = spans(3)
    assert [parent_of(first), parent_of(second)] == [id_of(sent)] * 2
    assert [(span.attributes or {})["incident_messaging.attempt"] for span in (first, second)] == [1, 2]
    assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, "not yet")
    assert (first.attributes or {})["error.type"] == "ValueError"
    assert [(event.attributes or {})["exception.message"] for event in first.events] == ["not yet"]
    assert second.status.status_code is StatusCode.UNSET
    assert second.events == ()


def test_retry_and_reject_are_decisions_and_no_errors(service: MessagingService, spans: Spans) -> None:
    def decide(delivery: Delivery[Any]) -> None:
        raise Retry(0.05) if delivery.attempt == 1 else Reject("of no use")

    service.subscribe("orders", callback=decide)
    service.publish("orders", {"n": 1})

    _, first, second = spans(3)
    decisions = [
        {name: value for name, value in (span.attributes or {}).items() if "outcome" in name or name in DETAILS}
        for span in (first, second)
    ]
    assert decisions == [
        {"incident_messaging.outcome": "retry", "incident_messaging.delay_secs": 0.05},
        {"incident_messaging.outcome": "reject", "incident_messaging.reason": "of no use"},
    ]
    assert {span.status.status_code for span in (first, second)} == {StatusCode.UNSET}
    assert first.events == second.events == ()


DETAILS = ("incident_messaging.delay_secs", "incident_messaging.reason", "error.type")


class Broken(SpanProcessor):
    """One that fails whenever it is asked."""

    def on_start(self, span: object, parent_context: object = None) -> None:
        raise RuntimeError("no room for a span")

    def on_end(self, span: object) -> None:
        raise RuntimeError("no room for a span")


def test_a_tracer_that_fails_does_no_harm(
    service: MessagingService, provider: TracerProvider, caplog: pytest.LogCaptureFixture
) -> None:
    provider.add_span_processor(Broken())
    handled: list[int] = []
    service.subscribe("orders", callback=lambda delivery: handled.append(delivery.attempt))
    assert service.publish("orders", {"n": 1}).message_id
    assert until(lambda: handled == [1], PATIENCE)
    assert "tracing: a publish has no span" in caplog.text
    assert "tracing: a handler has no span" in caplog.text


def test_the_page_tells_every_attribute_and_no_other() -> None:
    attribute = r"(?:messaging|incident_messaging|error)\.[a-z_.]+"
    source = Path(otel.__file__).read_text().replace('f"{NAME}.', '"incident_messaging.')
    page = (Path(__file__).parents[2] / "docs" / "tracing.rst").read_text()
    written = set(re.findall(f'"({attribute})"', source))
    assert written == set(re.findall(f"``({attribute})``", page))
    assert len(written) > 15


# -- on and off ---------------------------------------------------------------------------------------------


def test_nothing_is_traced_after_uninstrument(service: MessagingService, spans: Spans) -> None:
    service.publish("orders", {"n": 1})
    otel.uninstrument()
    handled: list[Delivery[Any]] = []
    service.subscribe("orders", callback=handled.append, group="late")
    service.publish("orders", {"n": 2})
    assert until(lambda: len(handled) == 2, PATIENCE)

    assert [span.name for span in spans(1)] == ["send orders"]
    assert ["traceparent" in delivery.headers for delivery in handled] == [True, False]


WITHOUT_SDK = """
import sys
sys.modules["opentelemetry.sdk"] = None
from incident_messaging import MessagingConfig, MessagingService
from incident_messaging.contrib import otel

otel.instrument()
with MessagingService(MessagingConfig(backend="memory")) as service:
    service.publish("orders", {"n": 1})
    delivery = service.consume_one("orders")
    with otel.processing(delivery):
        print(delivery.payload, dict(delivery.headers))
"""


def test_without_an_sdk_it_does_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_SDK], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{'n': 1} {}\n", "")


# -- for those who iterate, and for logs --------------------------------------------------------------


def test_an_iterator_opens_the_span_itself(each: MessagingService, tracer: trace.Tracer, spans: Spans) -> None:
    each.publish("orders", {"n": 1}, correlation_id="story-1")
    with tracer.start_as_current_span("task"):
        for delivery in each.consume("orders", timeout=PATIENCE, limit=1):
            with otel.processing(delivery):
                assert correlation_id.get() == "story-1"
                each.publish("pages", {"to": "on-call"})
    assert correlation_id.get() is None

    sent, task, processed, paged = spans(4)
    assert [span.name for span in (processed, paged)] == ["process orders", "send pages"]
    assert (parent_of(processed), parent_of(paged)) == (id_of(sent), id_of(processed))
    assert [link.context.span_id for link in processed.links] == [id_of(task)]
    assert (paged.attributes or {})["messaging.message.conversation_id"] == "story-1"


def test_what_an_iterator_s_block_raises_is_raised_on(service: MessagingService, spans: Spans) -> None:
    service.publish("orders", {"n": 1})
    delivery = service.consume_one("orders", timeout=PATIENCE)
    assert delivery is not None
    with pytest.raises(LookupError, match="no such order"), otel.processing(delivery):
        raise LookupError("no such order")
    _, processed = spans(2)
    assert processed.status.status_code is StatusCode.ERROR


def test_a_message_without_a_context_begins_a_trace_or_joins_that_of_its_reader(
    service: MessagingService, tracer: trace.Tracer, provider: TracerProvider, spans: Spans
) -> None:
    otel.uninstrument()
    for number in range(2):
        service.publish("orders", {"n": number})
    otel.instrument(provider)
    first, second = list(service.consume("orders", timeout=PATIENCE, limit=2))
    with otel.processing(first):
        pass
    with tracer.start_as_current_span("task"), otel.processing(second):
        pass

    alone, task, joined = spans(3)
    assert (parent_of(alone), parent_of(joined)) == (None, id_of(task))
    assert joined.links == ()


def test_the_correlation_id_and_the_log_fields_travel_without_tracing(each: MessagingService) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    handler.addFilter(LogFields())
    log = logging.Logger("application")
    log.addHandler(handler)

    def escalate(delivery: Delivery[Any]) -> None:
        log.warning("escalating")
        each.publish("pages", {"to": "on-call"})

    ended: list[str | None] = []
    each.subscribe("orders", callback=escalate, group="pager")
    each.subscribe("pages", callback=lambda delivery: ended.append(delivery.metadata.correlation_id), group="phones")
    token = correlation_id.set("request-7")
    receipt = each.publish("orders", {"n": 1})
    correlation_id.reset(token)

    assert until(lambda: ended == ["request-7"], PATIENCE)
    [record] = records
    fields = {name: getattr(record, name) for name in ("message_id", "correlation_id", "topic", "group", "attempt")}
    assert fields == {
        "message_id": receipt.message_id,
        "correlation_id": "request-7",
        "topic": "orders",
        "group": "pager",
        "attempt": 1,
    }
