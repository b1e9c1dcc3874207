"""A worker: handlers that run until SIGTERM or Ctrl-C.

Start as many as you like: those of one group share the events. The broker is chosen by the environment
(INCIDENT_MESSAGING_BACKEND, INCIDENT_MESSAGING_NATS__SERVERS, ...), NATS at localhost by default.
"""

from incident_messaging import (
    Delivery,
    IncidentEvent,
    IncidentResolved,
    MessagingConfig,
    MessagingService,
    Reject,
    Retry,
)

service = MessagingService(MessagingConfig.from_env())  # connects when the handlers start


@service.handler("incidents.*", IncidentEvent, group="audit", concurrency=4)
def audit(delivery: Delivery[IncidentEvent]) -> None:
    """Called by four threads; the events of one incident come one after the other."""
    event = delivery.payload
    print(f"audit: {event.type} of {event.incident_id}")


@service.handler("incidents.resolved", IncidentResolved, group="statistics")
def measure(delivery: Delivery[IncidentResolved]) -> None:
    """Returning acknowledges. Any exception means: again later, after the last attempt to the dead letters."""
    seconds = delivery.payload.resolution_time_secs
    if seconds == 0:
        raise Reject("resolved in no time")  # to the dead letters now
    if seconds > 365 * 86_400 and delivery.attempt == 1:
        raise Retry(delay=1.0)  # a second look, in a second
    print(f"statistics: {delivery.payload.incident_id} took {seconds / 60:.0f} minutes")


if __name__ == "__main__":
    for unfinished in service.run_until_signal():
        print(f"not finished: {unfinished}")
