"""Celery: what a task handed over is sent before its process takes another one, or ends.

No exit hook of Python's runs in the children of Celery's prefork pool.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery
from celery.signals import task_postrun, worker_process_shutdown, worker_shutdown

from incident_messaging.errors import MessagingError
from incident_messaging.service import MessagingService

__all__ = ["setup"]

log = logging.getLogger("incident_messaging")

#: Seconds that closing may take when a process of a worker ends.
CLOSE_TIMEOUT = 5.0


def setup(app: Celery, service: MessagingService, flush_timeout: float = 5.0) -> None:
    """Flush the service after each task of the app, and close it when a process of a worker ends.

    Where the broker does not answer in time, that is logged and the task's own outcome stays; what was handed over
    goes on its way. Calling it again for the same app and service does nothing.

    Args:
        app: Tasks of other apps are left alone.
        service: May stand at module level, used or not before the pool forks.
        flush_timeout: Seconds that a task waits at its end at most.
    """

    def flush(sender: Any = None, **_: object) -> None:
        if getattr(sender, "app", None) != app:
            return
        try:
            service.flush(flush_timeout)
        except MessagingError as error:
            log.error("after the task %s: %s", sender.name, error)

    def close_child(**_: object) -> None:
        service.close(CLOSE_TIMEOUT)

    def close(sender: Any = None, **_: object) -> None:
        if getattr(sender, "app", None) == app:
            service.close(CLOSE_TIMEOUT)

    for signal, receiver in ((task_postrun, flush), (worker_process_shutdown, close_child), (worker_shutdown, close)):
        signal.connect(receiver, weak=False, dispatch_uid=("incident_messaging", signal.name, id(app), id(service)))
