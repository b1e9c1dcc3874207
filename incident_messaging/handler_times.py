"""How long handlers take, as a worker's page of metrics tells the doctor."""

from __future__ import annotations

import http.client
import math
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from threading import Timer
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from incident_messaging.deadline import Deadline
from incident_messaging.errors import ConfigurationError

#: What a page of metrics may take: seconds to connect and then for all of it, and bytes.
_PAGE_SECS, _PAGE_BYTES = 5.0, 32 * 1024 * 1024
#: The share of handler runs that are looked at; the slowest of a thousand says little.
_MOST_RUNS = 0.99
_HANDLER_TIME = "messaging_handler_seconds"


def handler_times(url: str, backend: str) -> Mapping[str, float]:
    """Seconds within which 99 of 100 handler runs end, by topic, as a worker's page of metrics tells.

    Where that is beyond the histogram's last bound, the mean of the runs beyond it.

    Raises:
        ConfigurationError: The page cannot be had, or is none.
    """
    try:
        families = list(text_string_to_metric_families(_page(url)))
        samples = [sample for family in families if family.name == _HANDLER_TIME for sample in family.samples]
        return _slow_by_topic(sample for sample in samples if sample.labels.get("backend") == backend)
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise ConfigurationError(f"no metrics at {url}: {exc or type(exc).__name__}") from exc


def _slow_by_topic(samples: Iterable[Sample]) -> Mapping[str, float]:
    buckets: dict[str, dict[float, float]] = {}
    sums: dict[str, float] = {}
    for sample in samples:
        topic = sample.labels.get("topic", "")
        if not math.isfinite(sample.value):
            continue
        if sample.name == f"{_HANDLER_TIME}_bucket":
            bounds = buckets.setdefault(topic, {})
            bound = _bound(sample)
            bounds[bound] = bounds.get(bound, 0.0) + sample.value
        elif sample.name == f"{_HANDLER_TIME}_sum":
            sums[topic] = sums.get(topic, 0.0) + sample.value
    return {topic: slow(bounds, sums.get(topic, 0.0)) for topic, bounds in buckets.items() if max(bounds.values()) > 0}


def _bound(sample: Sample) -> float:
    bound = float(sample.labels.get("le", "nan"))
    if math.isnan(bound):
        raise ValueError(f"a bucket of {_HANDLER_TIME} has no bound (le)")
    return bound


def slow(buckets: Mapping[float, float], total: float) -> float:
    """The bound below which 99 of 100 runs lie, of a histogram's cumulative buckets and the sum of all runs."""
    bounds = sorted(buckets)
    count = max(buckets.values())
    found = next(bound for bound in bounds if buckets[bound] >= _MOST_RUNS * count)
    if found != float("inf"):
        return found
    below, known = 0.0, 0.0
    for low, bound in zip([0.0, *bounds], bounds[:-1], strict=False):
        known += low * (buckets[bound] - below)
        below = buckets[bound]
    return max(bounds[-2] if len(bounds) > 1 else 0.0, (total - known) / (count - below))


def _page(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it is no http:// or https:// URL")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=_PAGE_SECS)
    try:
        connection.connect()
        return _answer(connection, parts.path + (f"?{parts.query}" if parts.query else "") or "/metrics")
    finally:
        connection.close()


def _answer(connection: http.client.HTTPConnection, path: str) -> str:
    # A time-out of the socket counts for each piece alone, and a server may send one byte at a time for ever.
    deadline = Deadline.after(_PAGE_SECS)
    watch = Timer(_PAGE_SECS, _end, [connection.sock])
    watch.start()
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        if answer.status != http.HTTPStatus.OK:
            raise ValueError(f"the server answers {answer.status} {answer.reason}")
        page = answer.read(_PAGE_BYTES)
    except (OSError, http.client.HTTPException):
        if not deadline.over:
            raise
    finally:
        watch.cancel()
        watch.join()
    if deadline.over:
        raise TimeoutError(f"the page does not end within {_PAGE_SECS:g} s")
    return page.decode()


def _end(sock: socket.socket) -> None:
    with suppress(OSError):  # it has ended meanwhile
        sock.shutdown(socket.SHUT_RDWR)
