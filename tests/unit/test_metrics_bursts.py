"""Many values at once are counted as one after another; strange topics leave the page of metrics readable."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from incident_messaging import metrics

VALUES = st.lists(st.floats(0, 20) | st.sampled_from([0.001, 0.0025, 0.25, 10.0]), max_size=60)


def histogram(registry: CollectorRegistry) -> Histogram:
    made = Histogram("seconds", "Time", ["topic"], buckets=metrics._TIMES, registry=registry)
    return made.labels("orders")


def told(registry: CollectorRegistry) -> list[str]:
    """All but the moment of its making, and the sum, whose last digits depend on the order."""
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line and "_sum" not in line]


@given(VALUES)
def test_a_burst_fills_the_same_buckets(values: list[float]) -> None:
    one, many = CollectorRegistry(), CollectorRegistry()
    single, burst = histogram(one), histogram(many)

    for value in values:
        single.observe(value)
    metrics._observe(burst, values)

    assert told(many) == told(one)
    assert abs(burst._sum.get() - single._sum.get()) < 1e-6


def test_a_topic_of_foreign_bytes_is_no_label() -> None:
    meter = metrics.Meter(enabled=True, topic_limit=1_000_000)
    before = metrics.MESSAGING_METRICS.value("messages_consumed", topic=metrics.OTHER, backend="nats")
    meter.consumed("orders.\udcff", "nats", 1)
    meter.consumed("orders.\u00e4", "nats", 1)
    assert metrics.MESSAGING_METRICS.value("messages_consumed", topic=metrics.OTHER, backend="nats") == before + 1
    assert 'topic="orders.\u00e4"' in generate_latest().decode()
