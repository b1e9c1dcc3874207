"""A transactional outbox and an inbox in Django's ORM: an application for ``INSTALLED_APPS``.

``manage.py migrate`` makes the tables, ``manage.py relay_incidents`` publishes what the outbox holds.
"""

from incident_messaging.contrib.django.outbox.inbox import once, purge
from incident_messaging.contrib.django.outbox.writing import add, retry_failed

__all__ = ["add", "once", "purge", "retry_failed"]
