"""A process that runs handlers until it is told to end, and says on a port how it is.

What the commands ``incident-messaging worker``, ``flask incidents consume`` and ``manage.py consume_incidents``
have in common.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.multiprocess import MultiProcessCollector

from incident_messaging.errors import ConfigurationError
from incident_messaging.service import MessagingService

__all__ = ["logs_somewhere", "probes", "run", "serving"]

log = logging.getLogger("incident_messaging")

StartResponse = Callable[..., Any]
Wsgi = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


def run(
    service: MessagingService,
    *,
    concurrency: int | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    timeout: float = 10.0,
) -> list[str]:
    """Run the declared handlers until SIGTERM or SIGINT, then close; on the main thread.

    Args:
        service: Whose handlers; it is closed at the end.
        concurrency: How many workers call a handler that declares no ``concurrency`` of its own.
        host: Where the port is opened.
        port: Serves `probes`, 0 on a free port, which is logged; ``None`` opens none.
        timeout: Seconds for the close.

    Returns:
        What could not be finished in time, in words.

    Raises:
        ConfigurationError: No handler is declared, or the port cannot be had.
        MessagingError: A subscription could not be had, or ended by itself.
    """
    waiting = service.health().waiting_handlers
    if not waiting:
        raise ConfigurationError("no handler is declared: put @service.handler(topic, type) before a function")
    with nullcontext() if port is None else serving(service, host, port):
        log.info("worker: starting %d handlers", waiting)
        left = service.run_until_signal(timeout=timeout, concurrency=concurrency)
        log.info("worker: ended")
        return left


def logs_somewhere(level: int | str = logging.INFO) -> None:
    """Let a command say on stderr what it does, where the project has set up no logging: the SDK alone is silent."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def probes(service: MessagingService) -> Wsgi:
    """A WSGI application that tells how a process is that runs the handlers of a service.

    ``/livez`` is 200 unless a subscription has ended by itself or the service is closed, ``/readyz`` is 200 when
    every declared handler is subscribed and the brokers are connected; both say 503 else, with the service's
    health as JSON. ``/metrics`` is what Prometheus reads, of all processes where ``PROMETHEUS_MULTIPROC_DIR`` is set.

    Raises:
        ConfigurationError: ``PROMETHEUS_MULTIPROC_DIR`` names no folder.
    """
    metrics: Wsgi = make_wsgi_app(_registry())

    def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics(environ, start_response)
        if path not in ("/livez", "/readyz"):
            return _answer(start_response, "404 Not Found", {"error": "there are /livez, /readyz and /metrics"})
        health = service.health()
        alive = not health.ended and all(status.state != "closed" for status in health.backends.values())
        good = alive if path == "/livez" else health.ok and not health.waiting_handlers
        return _answer(start_response, "200 OK" if good else "503 Service Unavailable", health.to_dict())

    return application


def _answer(start_response: StartResponse, status: str, document: dict[str, Any]) -> list[bytes]:
    body = json.dumps(document).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def _registry() -> CollectorRegistry:
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    try:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    except ValueError as exc:
        raise ConfigurationError(f"PROMETHEUS_MULTIPROC_DIR must name a folder that exists: {exc}") from exc
    return registry


class _Server6(ThreadingWSGIServer):
    """For addresses such as ``::``."""

    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    """A probe every second is not worth a line each."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(service: MessagingService, host: str, port: int) -> Iterator[None]:
    """Serve `probes` of a service in the block, on a thread of its own.

    Raises:
        ConfigurationError: The port cannot be had, or as `probes`.
    """
    application = probes(service)
    try:
        server = make_server(host, port, application, _Server6 if ":" in host else ThreadingWSGIServer, _Quiet)
    except (OSError, OverflowError) as exc:
        raise ConfigurationError(f"port {port} on {host} cannot be had: {exc}; choose another one") from exc
    thread = threading.Thread(target=server.serve_forever, name="incident-messaging-probes", daemon=True)
    thread.start()
    log.info("worker: probes and metrics on http://%s:%d", host, server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(1.0)
