"""The SDK in a Django project (extra ``django``): an application for ``INSTALLED_APPS``.

Configured by ``settings.INCIDENT_MESSAGING``. Views use `get_service` and `publish_on_commit`; functions in the
``incident_handlers`` module of any installed application, decorated with `handler`, run in
``manage.py consume_incidents``.
"""

from incident_messaging.contrib.django.handlers import declare_handlers, handler
from incident_messaging.contrib.django.publishing import publish_on_commit
from incident_messaging.contrib.django.services import get_service

__all__ = ["declare_handlers", "get_service", "handler", "publish_on_commit"]
