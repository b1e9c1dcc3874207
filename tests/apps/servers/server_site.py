"""A WSGI application whose service stands at module level, as gunicorn and uWSGI load it."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from flask import Flask, Response
from prometheus_client import CollectorRegistry, generate_latest, multiprocess

from incident_messaging import MessagingConfig, MessagingService

logging.basicConfig(stream=sys.stderr, level=logging.WARNING)

service = MessagingService(MessagingConfig.from_mapping(json.loads(os.environ["SETTINGS"])))
app = Flask(__name__)


def publish(word: str, timeout: float = 20.0) -> None:
    service.publish("work", {"word": word}, timeout=timeout)


def publish_when_asked(asked: Path) -> None:
    """On a thread of the parent's, which its children do not have."""
    while not asked.exists():
        time.sleep(0.05)
    publish("parent after", timeout=5.0)  # a connection that a child has broken would need longer
    asked.unlink()


if "USED_BEFORE_FORK" in os.environ:
    publish("parent before")
    kept = service.subscribe("parents", group="parents")
    asked = Path(os.environ["USED_BEFORE_FORK"])
    threading.Thread(target=publish_when_asked, args=(asked,), daemon=True).start()


@app.get("/")
def who() -> dict[str, Any]:
    return {"pid": os.getpid(), "threads": threading.active_count()}


@app.post("/work/<word>")
def work(word: str) -> dict[str, Any]:
    """Publish, consume, and hand over what nobody waits for."""
    publish(word)
    delivery = service.consume_one("inbox", group=f"worker-{word}", timeout=20.0)
    for number in range(20):
        service.publish_nowait("work", {"word": f"{word} {number}"})
    return {"pid": os.getpid(), "consumed": delivery and delivery.payload}


@app.post("/nowait/<word>")
def nowait(word: str) -> dict[str, Any]:
    for number in range(20):
        service.publish_nowait("work", {"word": f"{word} {number}"})
    return {"pid": os.getpid()}


@app.get("/metrics")
def metrics() -> Response:
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return Response(json.dumps(generate_latest(registry).decode()), mimetype="application/json")
