"""What the doctor reads of a worker's page of metrics, and of pages that are not as they should be."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from incident_messaging import handler_times as module
from incident_messaging.errors import ConfigurationError
from incident_messaging.handler_times import handler_times, slow

INF = float("inf")


@pytest.mark.parametrize(
    ("buckets", "total", "seconds"),
    [
        ({0.1: 10, 1.0: 10, INF: 10}, 0.5, 0.1),
        ({0.1: 98, 1.0: 100, INF: 100}, 10.0, 1.0),
        ({0.1: 0, 10.0: 0, INF: 2}, 84.0, 42.0),
        ({0.1: 90, 10.0: 90, INF: 100}, 409.0, 40.9),
        ({INF: 4}, 20.0, 5.0),
    ],
    ids=["all fast", "a few slow", "all beyond", "some beyond", "no bounds"],
)
def test_the_slow_runs_of_a_histogram(buckets: dict[float, float], total: float, seconds: float) -> None:
    assert slow(buckets, total) == pytest.approx(seconds)


@pytest.fixture
def page() -> Iterator[Callable[[bytes], str]]:
    """Serves a page, all at once; returns its URL."""
    served = [b""]

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(served[0])

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def serve(text: bytes) -> str:
        served[0] = text
        return f"http://127.0.0.1:{server.server_port}/metrics"

    yield serve
    server.shutdown()
    thread.join()
    server.server_close()


def histogram(*buckets: tuple[str, str]) -> bytes:
    """Lines of a page: the labels beside the topic, and the value."""
    lines = [
        f'messaging_handler_seconds_bucket{{backend="nats",topic="a"{labels}}} {value}' for labels, value in buckets
    ]
    return "\n".join(["# TYPE messaging_handler_seconds histogram", *lines, ""]).encode()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (histogram(("", "3")), "has no bound"),
        (histogram((',le="x"', "3")), "could not convert string to float"),
        (histogram((',le="NaN"', "3")), "has no bound"),
        (b"\xff\xfe", "codec can't decode"),
        (b"<html>", ""),
    ],
    ids=["no le", "le is no number", "le is NaN", "no text", "no metrics"],
)
def test_a_page_that_is_none(page: Callable[[bytes], str], text: bytes, says: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"no metrics at http://127\.0\.0\.1:\d+/metrics: .*{says}"):
        handler_times(page(text), "nats")


def test_values_that_are_no_numbers_are_left_out(page: Callable[[bytes], str]) -> None:
    bad = ((',le="1"', "NaN"), (',le="+Inf"', "NaN"))
    assert handler_times(page(histogram(*bad)), "nats") == {}
    assert handler_times(page(histogram((',le="1"', "3"), *bad)), "nats") == {"a": 1.0}


@pytest.mark.parametrize("begin", [b"HTTP/1.0 200 OK\r\nX: ", b"HTTP/1.0 200 OK\r\n\r\n# "], ids=["head", "body"])
def test_a_page_that_never_ends(begin: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece comes in time, and all of it never."""
    monkeypatch.setattr(module, "_PAGE_SECS", 0.3)
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.sendall(begin)
            while not over.wait(0.05):
                connection.sendall(b"#")

    thread = threading.Thread(target=drip)
    thread.start()
    began = time.monotonic()
    try:
        with pytest.raises(ConfigurationError, match=r"the page does not end within 0\.3 s"):
            handler_times(f"http://127.0.0.1:{listener.getsockname()[1]}/metrics", "nats")
        assert time.monotonic() - began < 10.0
    finally:
        over.set()
        thread.join()
        listener.close()
