"""``incident-messaging worker``."""

from __future__ import annotations

import importlib
import os
import sys

import click

from incident_messaging.commands.common import MOST_SECONDS, Number, failing, printable
from incident_messaging.errors import ConfigurationError
from incident_messaging.service import MessagingService
from incident_messaging.worker import logs_somewhere, run

__all__ = ["find_service", "worker"]

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@click.command()
@click.argument("service", metavar="MODULE:SERVICE")
@click.option("--concurrency", type=click.IntRange(min=1), metavar="N", help="Workers of a handler that declares none.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where the port is opened.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    help="Serve /livez, /readyz and /metrics there; 0 is a free port, which is logged.",
)
@click.option(
    "--timeout", type=Number(0, MOST_SECONDS), default=10.0, show_default=True, help="Seconds that the end may take."
)
@click.option(
    "--log-level",
    type=click.Choice(_LEVELS, case_sensitive=False),
    default="INFO",
    show_default=True,
    help="What is logged on stderr, where the module has not set up logging.",
)
def worker(service: str, concurrency: int | None, host: str, port: int | None, timeout: float, log_level: str) -> None:
    """Run the handlers that MODULE declares with @SERVICE.handler, until SIGTERM or Ctrl-C.

    SERVICE is a MessagingService in MODULE, or a function without arguments that returns one.

    Exit code: 0 if all was finished at the end, 1 if something could not be or an error ended the worker, 2 if it
    cannot run as it is configured.
    """
    with failing():
        found = find_service(service)
        logs_somewhere(log_level.upper())
        left = run(found, concurrency=concurrency, host=host, port=port, timeout=timeout)
    for words in left:
        click.echo(f"not finished: {printable(words)}", err=True)
    sys.exit(1 if left else 0)


def find_service(where: str) -> MessagingService:
    """The service that ``module:name`` names, or that the function of that name returns.

    The current folder is looked into first, as ``python -m`` does.

    Raises:
        ConfigurationError: There is none; the text says what is there.
    """
    module_name, colon, name = where.partition(":")
    if not (module_name and colon and name.isidentifier()):
        raise ConfigurationError(f"{where!r} is not allowed: module:service, such as myapp.messaging:service")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        if missing.name is None or not f"{module_name}.".startswith(f"{missing.name}."):
            raise  # of what the module itself imports: its traceback says where
        raise ConfigurationError(f"there is no module {missing.name!r} in {os.getcwd()} or installed") from None
    found = getattr(module, name, None)
    if callable(found) and not isinstance(found, type):
        found = found()
    if not isinstance(found, MessagingService):
        there = sorted(key for key, value in vars(module).items() if isinstance(value, MessagingService))
        raise ConfigurationError(f"{module_name} has no MessagingService {name!r}; it has {', '.join(there) or 'none'}")
    return found
