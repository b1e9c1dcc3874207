"""The installable application."""

from django.apps import AppConfig
from django.core.signals import setting_changed

from incident_messaging.contrib.django.services import changed


class IncidentMessagingConfig(AppConfig):  # type: ignore[misc]
    """Registers the system checks, and follows changed settings."""

    name = "incident_messaging.contrib.django"
    label = "incident_messaging"
    verbose_name = "Incident messaging"

    def ready(self) -> None:
        """Called by Django when all applications are there."""
        from incident_messaging.contrib.django import checks  # noqa: F401  # registers itself

        setting_changed.connect(changed, dispatch_uid="incident_messaging")
