"""Celery tasks that publish, in forked worker processes.

    pip install 'incident-messaging[celery]'
    celery --app celery_task worker
    python celery_task.py INC-1

CELERY_BROKER_URL says where Celery's own queue is, RabbitMQ at localhost by default. Where the events go is said by
INCIDENT_MESSAGING_BACKEND, INCIDENT_MESSAGING_NATS__SERVERS, ...; NATS at localhost by default.
"""

import os
import sys

from celery import Celery

from incident_messaging import IncidentEscalated, MessagingConfig, MessagingError, MessagingService
from incident_messaging.contrib.celery import setup

app = Celery("celery_task", broker=os.environ.get("CELERY_BROKER_URL", "amqp://localhost"))
service = MessagingService(MessagingConfig.from_env())  # connects in each worker process, at its first task
setup(app, service)  # flushes after each task, closes with the worker process


@app.task(autoretry_for=(MessagingError,), retry_backoff=True, max_retries=5)
def escalate(incident, level):
    """Returns when the broker has the event; where it cannot be had, Celery runs the task again."""
    service.publish_incident_event(IncidentEscalated(incident, level))


@app.task
def note(incident, text):
    """Waits for nothing: what is on its way when the task ends is flushed before the next one."""
    service.publish_nowait("notes", {"incident_id": incident, "text": text}, key=incident)


if __name__ == "__main__":
    escalate.delay(sys.argv[1], 2)
    note.delay(sys.argv[1], "escalated by hand")
