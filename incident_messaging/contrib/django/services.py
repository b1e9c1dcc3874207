"""The service of the process, as the settings ask for it."""

from __future__ import annotations

import weakref

from django.conf import settings

from incident_messaging.contrib.settings import SETTING, service_of
from incident_messaging.service import MessagingService

#: One at most, that of the setting. ``dict.setdefault`` is atomic, where a lock might be taken at the moment of a fork.
_made: dict[str, MessagingService] = {}
#: Those that the project has made itself.
_given: weakref.WeakSet[MessagingService] = weakref.WeakSet()


def get_service() -> MessagingService:
    """The service of this process, made at the first call from ``settings.INCIDENT_MESSAGING``.

    The setting is a mapping as `MessagingConfig.from_mapping` takes it (keys in any case), a `MessagingConfig`, a
    `MessagingService`, or absent for the defaults. Where it is changed, as by ``override_settings``, a service that
    was made here is closed, and the next call makes another.

    Raises:
        ConfigurationError: The setting is not allowed; the text names the field.
    """
    made = _made.get(SETTING)
    if made is None:  # two threads may make one each: that costs nothing, and all get the same
        setting = getattr(settings, SETTING, None)
        if isinstance(setting, MessagingService):
            _given.add(setting)
        made = _made.setdefault(SETTING, service_of(setting, f"settings.{SETTING}"))
    return made


def changed(*, setting: str, **_: object) -> None:
    """Receive ``setting_changed``: forget the service of the settings as they were."""
    if setting == SETTING:
        forget()


def forget() -> None:
    """Let the next `get_service` look at the settings again; what the project has made itself, it closes itself."""
    made = _made.pop(SETTING, None)
    if made is not None and made not in _given:
        made.close()
