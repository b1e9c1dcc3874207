"""The service of the process, as the settings ask for it."""

from __future__ import annotations

from django.conf import settings

from incident_messaging.contrib.settings import SETTING, service_of
from incident_messaging.service import MessagingService

#: One at most. ``dict.setdefault`` is atomic, where a lock might be taken at the moment of a fork.
_made: dict[str, MessagingService] = {}


def get_service() -> MessagingService:
    """The service of this process, made at the first call from ``settings.INCIDENT_MESSAGING``.

    The setting is a mapping as `MessagingConfig.from_mapping` takes it (keys in any case), a `MessagingConfig`, a
    `MessagingService`, or absent for the defaults. Where it is changed, as by ``override_settings``, the service
    is closed, and the next call makes another.

    Raises:
        ConfigurationError: The setting is not allowed; the text names the field.
    """
    made = _made.get(SETTING)
    if made is None:  # two threads may make one each: that costs nothing, and all get the same
        made = _made.setdefault(SETTING, service_of(getattr(settings, SETTING, None), f"settings.{SETTING}"))
    return made


def forget(*, setting: str, **_: object) -> None:
    """Receive ``setting_changed``: close the service of the settings as they were."""
    if setting == SETTING and (made := _made.pop(SETTING, None)) is not None:
        made.close()
