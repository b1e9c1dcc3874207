"""A worker: handlers that run until SIGTERM or Ctrl-C.

Start as many as you like: those of one group share the events. The broker is chosen by the environment
(INCIDENT_MESSAGING_BACKEND, INCIDENT_MESSAGING_NATS__SERVERS, ...), NATS at localhost by default.
"""

import logging

from incident_messaging import (
    Delivery,
    IncidentEvent,
    IncidentResolved,
    MessagingConfig,
    MessagingService,
    Reject,
    Retry,
)

log = logging.getLogger("worker")
service = MessagingService(MessagingConfig.from_env())  # connects when the handlers start


@service.handler("incidents.*", IncidentEvent, group="audit", concurrency=4)
def audit(delivery: Delivery[IncidentEvent]) -> None:
    """Called by four threads; the events of one incident come one after the other."""
    event = delivery.payload
    log.info("audit: %s of %s", event.type, event.incident_id)


@service.handler("incidents.resolved", IncidentResolved, group="statistics")
def measure(delivery: Delivery[IncidentResolved]) -> None:
    """Returning acknowledges; after any exception it comes again, and at last goes to the dead letters."""
    seconds = delivery.payload.resolution_time_secs
    if seconds == 0:
        raise Reject("resolved in no time")  # to the dead letters now
    if seconds > 365 * 86_400 and delivery.attempt == 1:
        raise Retry(delay=1.0)  # a second look, in a second
    log.info("statistics: %s took %.0f minutes", delivery.payload.incident_id, seconds / 60)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    service.run_until_signal()  # what it could not finish in time is logged, and returned
