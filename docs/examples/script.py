"""A script: open and resolve incidents, and list what is open, from a shell or cron.

    pip install incident-messaging
    python script.py open INC-1 critical database "primary is down"
    python script.py list
    python script.py resolve INC-1 --after 600

The broker is chosen by the environment (INCIDENT_MESSAGING_BACKEND, INCIDENT_MESSAGING_NATS__SERVERS, ...),
NATS at localhost by default.
"""

import argparse

from incident_messaging import (
    IncidentCreated,
    IncidentEvent,
    IncidentResolved,
    MessagingConfig,
    MessagingError,
    MessagingService,
)

parser = argparse.ArgumentParser(description="Open, resolve and list incidents.")
commands = parser.add_subparsers(dest="command", required=True)
command = commands.add_parser("open")
for name in ("incident", "severity", "type", "title"):
    command.add_argument(name)
command = commands.add_parser("resolve")
command.add_argument("incident")
command.add_argument("--after", type=int, default=0, help="seconds that it took")
commands.add_parser("list")


def open_incidents(service):
    """Read all that the broker keeps, as a broadcast: no group is left behind, and nobody's place moves.

    Each kind of event has a topic of its own, and Kafka keeps no order between topics: the end of an incident may
    come before its beginning. So what is over is looked at when all has been read.
    """
    found, resolved = {}, set()
    for delivery in service.consume("incidents.*", IncidentEvent, broadcast=True, start="earliest", timeout=2):
        match delivery.payload:
            case IncidentCreated() as incident:
                found[incident.incident_id] = incident
            case IncidentResolved(incident_id=incident):
                resolved.add(incident)
    return [incident for number, incident in found.items() if number not in resolved]


def main(wanted):
    with MessagingService(MessagingConfig.from_env()) as service:
        if wanted.command == "open":
            service.publish_incident_created(wanted.incident, wanted.severity, wanted.type, wanted.title)
        elif wanted.command == "resolve":
            service.publish_incident_resolved(wanted.incident, wanted.after)
        else:
            for incident in open_incidents(service):
                print(f"{incident.incident_id}  {incident.severity:8}  {incident.title}")


if __name__ == "__main__":
    try:
        main(parser.parse_args())
    except MessagingError as error:
        raise SystemExit(f"{error}") from error
