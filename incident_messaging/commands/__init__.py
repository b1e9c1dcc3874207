"""What the command ``incident-messaging`` can do; loaded by `incident_messaging.cli`."""

from __future__ import annotations

from importlib import import_module

import click

__all__ = ["commands"]

#: Each command's module here, which has it under its own name; only that of the command that runs is loaded.
_MODULES = {
    "bench": "bench",
    "config": "config",
    "consume": "consume",
    "demo": "demo",
    "dlq": "dlq",
    "doctor": "doctor",
    "groups": "groups",
    "lag": "lag",
    "publish": "publish",
    "replay": "replay",
    "schema": "schema",
    "tail": "tail",
    "worker": "worker",
}


class _Commands(click.Group):
    def list_commands(self, _context: click.Context) -> list[str]:
        return sorted(_MODULES)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in _MODULES:
            return None
        command: click.Command = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="incident-messaging", prog_name="incident-messaging", message="%(prog)s %(version)s")
def commands() -> None:
    """Incident events over Apache Kafka and NATS."""
