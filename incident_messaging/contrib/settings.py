"""The framework's setting ``INCIDENT_MESSAGING``, and the service that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from incident_messaging.config import MessagingConfig
from incident_messaging.errors import ConfigurationError
from incident_messaging.service import MessagingService

SETTING = "INCIDENT_MESSAGING"


def service_of(setting: object, where: str) -> MessagingService:
    """The service for a setting: a mapping, a `MessagingConfig`, a service itself, or ``None`` for the defaults.

    Args:
        setting: Keys of a mapping may be written in any case.
        where: What to call it in an error.

    Raises:
        ConfigurationError: It is not allowed; the text names the field.
    """
    return setting if isinstance(setting, MessagingService) else MessagingService(config_of(setting, where))


def config_of(setting: object, where: str) -> MessagingConfig:
    """The configuration that a setting describes; as `service_of`."""
    if isinstance(setting, MessagingService):
        return setting.config
    if isinstance(setting, MessagingConfig):
        return setting
    try:
        return MessagingConfig.from_mapping(_lower(setting) if setting is not None else {})
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _lower(setting: Any) -> Any:
    """A mapping with its keys in lower case; two of one name are put together, the later one wins."""
    if not isinstance(setting, Mapping):
        return setting
    found: dict[Any, Any] = {}
    for key, value in setting.items():
        name = key.lower() if isinstance(key, str) else key
        value = _lower(value)
        both = isinstance(value, dict) and isinstance(found.get(name), dict)
        found[name] = found[name] | value if both else value
    return found
