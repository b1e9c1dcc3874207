"""A Celery application whose tasks publish and do not wait."""

from __future__ import annotations

import json
import os
from pathlib import Path

from celery import Celery
from celery.signals import worker_shutting_down

from incident_messaging import MessagingConfig, MessagingService
from incident_messaging.contrib.celery import setup

folder = Path(os.environ["FOLDER"])
queue = str(folder / "queue")

app = Celery("celery_site", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": queue,
    "data_folder_out": queue,
    "control_folder": queue,
    "polling_interval": 0.1,
}
app.conf.worker_hijack_root_logger = False

service = MessagingService(MessagingConfig.from_mapping(json.loads(os.environ["SETTINGS"])))
setup(app, service, flush_timeout=float(os.environ.get("FLUSH_TIMEOUT", "10")))
setup(app, service)  # a second time changes nothing

if "USED_BEFORE_FORK" in os.environ:
    service.publish("work", {"word": "parent before"})
    kept = [service.subscribe("parents", group="parents", backend=backend) for backend in ("nats", "kafka")]

    @worker_shutting_down.connect(weak=False)
    def after(**_: object) -> None:
        """In the parent, whose children have come and gone; a connection that one has broken would need longer."""
        service.publish("work", {"word": "parent after"}, timeout=5.0)


@app.task
def work(word: str) -> None:
    for backend in os.environ.get("CONSUME", "").split() if word in ("task0", "task1") else ():
        delivery = service.consume_one("inbox", group=word, timeout=30.0, backend=backend)
        assert delivery is not None, f"nothing came from {backend}"
    for number in range(20):
        service.publish_nowait("work", {"word": f"{word} {number}"})
    (folder / f"done-{word}").write_text(str(os.getpid()))
