"""The SDK in a Flask application (extra ``flask``).

::

    messaging = Messaging()

    @messaging.handler("incidents.created", IncidentCreated, group="pager")
    def page(delivery): ...

    def create_app():
        app = Flask(__name__)
        app.config["INCIDENT_MESSAGING"] = {"backend": "kafka"}
        messaging.init_app(app)
        return app

In a view ``messaging.service`` is the application's own service. The handlers run in
``flask incidents consume``, never in a web process.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar, Unpack

import click
from flask import Flask, current_app
from flask.cli import AppGroup

from incident_messaging import worker
from incident_messaging.consuming.options import HandlerOptions
from incident_messaging.contrib.declarations import Declaration
from incident_messaging.contrib.settings import SETTING, service_of
from incident_messaging.errors import ConfigurationError, MessagingError
from incident_messaging.service import MessagingService

__all__ = ["Messaging"]

F = TypeVar("F", bound=Callable[..., object])

#: The key of ``app.extensions``; behind it are the `Messaging` and the application's service.
EXTENSION = "incident_messaging"


class Messaging:
    """The Flask extension: a `MessagingService` for each application.

    Configured by ``app.config["INCIDENT_MESSAGING"]``: a mapping as `MessagingConfig.from_mapping` takes it
    (keys in any case, as ``app.config.from_prefixed_env()`` makes them), a `MessagingConfig`, a
    `MessagingService`, or nothing for the defaults. Nothing connects before the first use, and nothing has to
    be closed: the SDK closes every service when the process ends.

    Args:
        app: The application, where there is only one and no factory; else call `init_app`.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._declarations: list[Declaration] = []
        #: The application of each service; of several with one service, the last.
        self._apps: weakref.WeakKeyDictionary[MessagingService, Flask] = weakref.WeakKeyDictionary()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Give an application its service, the handlers declared here, and the command ``flask incidents consume``.

        Raises:
            ConfigurationError: The configuration is not allowed; the text names the field.
            RuntimeError: The application has a service already.
        """
        if EXTENSION in app.extensions:
            raise RuntimeError(
                f"the application {app.name!r} has a Messaging already; init_app is called once for each"
            )
        service = service_of(app.config.get(SETTING), f'app.config["{SETTING}"]')
        app.extensions[EXTENSION] = (self, service)
        is_new = service not in self._apps
        self._apps[service] = app
        if is_new:
            for declaration in self._declarations:
                self._put(declaration, service)
        app.cli.add_command(commands)

    @property
    def service(self) -> MessagingService:
        """The service of the current application.

        Raises:
            RuntimeError: There is no application context, or its application was not given to `init_app`.
        """
        if not current_app:
            raise RuntimeError(
                "Messaging.service belongs to an application, and there is no application context here;"
                " use it in a view, a handler or a command, or inside of: with app.app_context(): ..."
            )
        return self._of(current_app)

    def handler(self, topic: str, message_type: Any = dict, **options: Unpack[HandlerOptions]) -> Callable[[F], F]:
        """Declare a handler on every application of this extension, also on those that come later.

        It is subscribed by ``flask incidents consume``, and called with each `Delivery` in an application
        context of its own. Options as `MessagingService.subscribe`.

        Raises:
            ConfigurationError: It is a coroutine function.
        """

        def declare(function: F) -> F:
            declaration = Declaration(topic, message_type, function, options)
            self._declarations.append(declaration)
            for service in list(self._apps):
                self._put(declaration, service)
            return function

        return declare

    def close(self, app: Flask, timeout: float = 10.0) -> list[str]:
        """Close an application's service for good, as `MessagingService.close`: at the end of a test.

        Raises:
            RuntimeError: The application was not given to `init_app`.
        """
        return self._of(app).close(timeout)

    def _put(self, declaration: Declaration, service: MessagingService) -> None:
        declaration.put_on(service, lambda: self._apps[service].app_context())

    def _of(self, app: Flask) -> MessagingService:
        owner, service = app.extensions.get(EXTENSION, (None, None))
        if owner is not self:
            raise RuntimeError(f"the application {app.name!r} has no service of this Messaging; call init_app first")
        found: MessagingService = service
        return found


commands = AppGroup("incidents", help="Incident events over Kafka and NATS.")


@commands.command("consume")
@click.option("--concurrency", type=click.IntRange(min=1), help="Workers of each handler that declares none.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where probes and metrics are served.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Serve /livez, /readyz and /metrics here.")
@click.option("--timeout", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Seconds for the end.")
def consume(concurrency: int | None, host: str, port: int | None, timeout: float) -> None:
    """Run the declared handlers until SIGTERM or Ctrl-C."""
    worker.logs_somewhere()
    service: MessagingService = current_app.extensions[EXTENSION][1]
    try:
        if not service.health().waiting_handlers:
            raise ConfigurationError(
                "no handlers: decorate functions with @messaging.handler(topic, ...), in modules that the"
                " application imports"
            )
        left = worker.run(service, concurrency=concurrency, host=host, port=port, timeout=timeout)
    except MessagingError as error:
        raise click.ClickException(" ".join(str(error).split())) from error
    if left:
        raise click.ClickException(f"not finished: {'; '.join(left)}")
