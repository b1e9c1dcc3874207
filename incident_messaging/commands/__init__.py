"""What the command ``incident-messaging`` can do; loaded by `incident_messaging.cli`."""

from __future__ import annotations

import click

from incident_messaging.commands import demo, dlq, worker

__all__ = ["commands"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="incident-messaging", prog_name="incident-messaging", message="%(prog)s %(version)s")
def commands() -> None:
    """Incident events over Apache Kafka and NATS."""


commands.add_command(demo.demo)
commands.add_command(dlq.dlq)
commands.add_command(worker.worker)
