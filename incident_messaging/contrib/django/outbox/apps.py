"""The installable application."""

from django.apps import AppConfig


class OutboxConfig(AppConfig):  # type: ignore[misc]
    """Brings the tables of outbox and inbox."""

    name = "incident_messaging.contrib.django.outbox"
    label = "incident_outbox"
    verbose_name = "Incident outbox"
    default_auto_field = "django.db.models.BigAutoField"
