"""System checks: what is wrong with the setting, in words, before anything is published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

from incident_messaging.config import MessagingBackend
from incident_messaging.contrib.settings import SETTING, config_of
from incident_messaging.errors import ConfigurationError

NAME = f"settings.{SETTING}"


@register("incident_messaging")  # type: ignore[untyped-decorator]
def check_setting(app_configs: object, **_: object) -> Sequence[CheckMessage]:
    """E001: of the wrong kind. E002: a field that is unknown, or a value that is not allowed."""
    setting = getattr(settings, SETTING, None)
    try:
        config_of(setting, NAME)
    except ConfigurationError as error:
        if not isinstance(setting, Mapping):
            text, example = f"{NAME} must be a mapping, not {type(setting).__name__}.", '{"backend": "nats"}'
            return [Error(text, hint=f"Write for example {SETTING} = {example}.", id=_id("E001"))]
        text, _semicolon, remedy = str(error).partition("; ")
        hint = f"{remedy[:1].upper()}{remedy[1:]}." if remedy else "Its names and values are those of MessagingConfig."
        return [Error(f"{text}.", hint=hint, id=_id("E002"))]
    return []


@register("incident_messaging", deploy=True)  # type: ignore[untyped-decorator]
def check_deployment(app_configs: object, **_: object) -> Sequence[CheckMessage]:
    """W001: not set at all. W002: events never leave the process."""
    setting = getattr(settings, SETTING, None)
    if setting is None:
        return [
            Warning(
                f"{NAME} is not set, so events go to a NATS server on this host.",
                hint=f"Say where the brokers are: {SETTING} = {{...}}; an empty mapping is an answer, too.",
                id=_id("W001"),
            )
        ]
    try:
        memory = config_of(setting, NAME).backend is MessagingBackend.MEMORY
    except ConfigurationError:  # an error of its own
        return []
    if not memory:
        return []
    hint = "It is there for tests; choose nats, kafka or both."
    return [Warning(f'{NAME} has the backend "memory": nothing leaves the process.', hint=hint, id=_id("W002"))]


def _id(number: str) -> str:
    return f"incident_messaging.{number}"
