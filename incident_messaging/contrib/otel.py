"""OpenTelemetry spans of publishes and handlers (extra ``otel``), by its semantic conventions for messaging.

::

    from incident_messaging.contrib import otel

    otel.instrument()

From then on every publish of the process is a span ``send <topic>`` (producer), every start of a callback a span
``process <topic>`` (consumer), and the context travels in the headers that the application's propagators write
(``traceparent`` by default), on both brokers. The span of a callback is a child of the publish, so that what a
callback publishes stands in the same trace. Only opentelemetry-api is needed; without an SDK all of it does nothing.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import attrs
from opentelemetry import context, propagate, trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, TracerProvider
from opentelemetry.util.types import AttributeValue

from incident_messaging import tracing
from incident_messaging.config import MessagingBackend
from incident_messaging.consuming.delivery import Delivery, Reject, Retry
from incident_messaging.context import Handling
from incident_messaging.errors import MessagingError
from incident_messaging.publishing.publication import BrokerResult
from incident_messaging.record import Position

__all__ = ["instrument", "processing", "uninstrument"]

log = logging.getLogger("incident_messaging")

NAME = "incident_messaging"
KAFKA = MessagingBackend.KAFKA.value

Attributes = dict[str, AttributeValue]


def instrument(tracer_provider: TracerProvider | None = None) -> None:
    """Trace every service of this process from now on; called again, with another provider.

    A span ends on a thread of the SDK's own: use a processor that exports in the background, such as
    ``BatchSpanProcessor``.

    Args:
        tracer_provider: ``None`` is the global one, which may be set later.
    """
    version = importlib.metadata.version("incident-messaging")
    tracing.install(_Tracing(trace.get_tracer(NAME, version, tracer_provider)))


def uninstrument() -> None:
    """Trace nothing from now on; a span that was begun still ends."""
    tracing.install(None)


@contextmanager
def processing(delivery: Delivery[Any]) -> Iterator[None]:
    """A ``with`` block round the work on a delivery, for those who iterate: what a callback has by itself.

    A span ``process <topic>``, where tracing is on, the correlation id for what is published within, and the fields
    for log records. What the block raises is raised on.
    """
    with Handling(delivery), tracing.handling(delivery):
        yield


class _Tracing:
    """What looks on for OpenTelemetry."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def publishing(self, message: tracing.Outgoing) -> tracing.Sending:
        """Begin the span of a publish."""
        try:
            return self._sending(message)
        except Exception:
            log.exception("tracing: a publish has no span")
            return _Sending(trace.INVALID_SPAN, {})

    def handling(self, delivery: Delivery[Any]) -> AbstractContextManager[None]:
        """The span of a handler, which is the current one meanwhile."""
        return _handling(self._tracer, delivery)

    def _sending(self, message: tracing.Outgoing) -> tracing.Sending:
        attributes = _about("send", message.topic, ",".join(message.backends), message.key)
        attributes["messaging.message.id"] = message.message_id
        attributes["messaging.message.body.size"] = message.size
        if message.correlation_id is not None:
            attributes["messaging.message.conversation_id"] = message.correlation_id
        span = self._tracer.start_span(f"send {message.topic}", kind=SpanKind.PRODUCER, attributes=attributes)
        headers: dict[str, str] = {}
        propagate.inject(headers, trace.set_span_in_context(span))
        return _Sending(span, headers)


@attrs.define
class _Sending:
    """One publish and its span."""

    span: Span
    headers: Mapping[str, str]

    def ended(self, results: Mapping[MessagingBackend, BrokerResult], error: BaseException | None) -> None:
        """Say what became of it, and end the span."""
        try:
            for result in results.values():
                if result.position is not None:
                    self.span.set_attributes(_place(result.position))
            if any(result.duplicate for result in results.values()):
                self.span.set_attribute(f"{NAME}.duplicate", True)
            if error is not None:
                _failed(self.span, error)
            self.span.end()
        except Exception:
            log.exception("tracing: the span of a publish is lost")


@contextmanager
def _handling(tracer: Tracer, delivery: Delivery[Any]) -> Iterator[None]:
    span, inside = _begin(tracer, delivery)
    token = context.attach(inside)
    try:
        yield
    except BaseException as error:
        _outcome(span, error)
        raise
    finally:
        context.detach(token)
        _end(span)


def _begin(tracer: Tracer, delivery: Delivery[Any]) -> tuple[Span, context.Context]:
    """The span of a handler and the context to run it in: a child of the publish, linked to what it interrupts."""
    try:
        outside = trace.get_current_span().get_span_context()
        # Writers in other languages write the names of headers in their own way.
        carrier = {name.lower(): text for name, text in delivery.headers.items()}
        parent = propagate.extract(carrier, context.get_current())
        inherits = trace.get_current_span(parent).get_span_context() == outside
        span = tracer.start_span(
            f"process {delivery.topic}",
            context=parent,
            kind=SpanKind.CONSUMER,
            attributes=_about_delivery(delivery),
            links=() if inherits or not outside.is_valid else (Link(outside),),
        )
        return span, trace.set_span_in_context(span, parent)
    except Exception:
        log.exception("tracing: a handler has no span")
        return trace.INVALID_SPAN, context.get_current()


def _outcome(span: Span, error: BaseException) -> None:
    try:
        if isinstance(error, Retry | Reject):  # decisions of the handler, not failures of it
            span.set_attributes(_decision(error))
        else:
            _failed(span, error)
    except Exception:
        log.exception("tracing: what a handler raised is lost to its span")


def _end(span: Span) -> None:
    try:
        span.end()
    except Exception:
        log.exception("tracing: the span of a handler is lost")


def _about(operation: str, topic: str, system: str, key: str | None) -> Attributes:
    attributes: Attributes = {
        "messaging.system": system,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
    }
    if key is not None:
        attributes["messaging.kafka.message.key" if system == KAFKA else f"{NAME}.key"] = key
    return attributes


def _about_delivery(delivery: Delivery[Any]) -> Attributes:
    attributes = _about("process", delivery.topic, delivery.backend.value, delivery.key) | _place(delivery.position)
    attributes["messaging.message.id"] = delivery.metadata.message_id
    attributes["messaging.message.body.size"] = len(delivery.body)
    attributes[f"{NAME}.attempt"] = delivery.attempt
    if delivery.metadata.correlation_id is not None:
        attributes["messaging.message.conversation_id"] = delivery.metadata.correlation_id
    if delivery.group is not None:
        attributes["messaging.consumer.group.name"] = delivery.group
    return attributes


def _place(position: Position) -> Attributes:
    """Where a broker keeps a message."""
    attributes: Attributes = {}
    if position.partition is not None:
        attributes["messaging.destination.partition.id"] = str(position.partition)
    if position.offset is not None:
        attributes["messaging.kafka.offset"] = position.offset
    if position.stream is not None and position.sequence is not None:
        attributes |= {f"{NAME}.stream": position.stream, f"{NAME}.sequence": position.sequence}
    return attributes


def _decision(outcome: Retry | Reject) -> Attributes:
    if isinstance(outcome, Reject):
        return {f"{NAME}.outcome": "reject", f"{NAME}.reason": str(outcome)}
    delay: Attributes = {} if outcome.delay is None else {f"{NAME}.delay_secs": float(outcome.delay)}
    return {f"{NAME}.outcome": "retry"} | delay


def _failed(span: Span, error: BaseException) -> None:
    span.record_exception(error)
    span.set_attribute("error.type", type(error).__qualname__)
    if isinstance(error, MessagingError):
        span.set_attribute(f"{NAME}.error.code", error.code)
    span.set_status(Status(StatusCode.ERROR, str(error)))
