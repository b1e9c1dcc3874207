"""A REST endpoint in Django, in one file: an incident is stored, and published once that is committed.

    pip install 'incident-messaging[django]'
    python rest_django.py migrate --run-syncdb
    python rest_django.py runserver
    curl -i localhost:8000/incidents -H 'Content-Type: application/json' \\
         -d '{"severity": "critical", "type": "database", "title": "primary is down"}'

The broker is chosen by the environment (INCIDENT_MESSAGING_BACKEND, INCIDENT_MESSAGING_NATS__SERVERS, ...),
NATS at localhost by default. A message that must not be lost even where the process dies between the commit and
the publish goes through the outbox instead.
"""

import json
import sys

import django
from django.conf import settings

from incident_messaging import IncidentCreated, MessagingConfig
from incident_messaging.context import correlation_id

settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "incidents.sqlite3"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INCIDENT_MESSAGING=MessagingConfig.from_env(),
    INSTALLED_APPS=["incident_messaging.contrib.django", __name__],
    MIDDLEWARE=[f"{__name__}.correlated"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="only for this example",
)
django.setup()

from django.apps import apps  # noqa: E402
from django.core.management import execute_from_command_line  # noqa: E402
from django.db import models, transaction  # noqa: E402
from django.http import JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402
from django.views.decorators.http import require_POST  # noqa: E402

from incident_messaging.contrib.django import publish_on_commit  # noqa: E402

apps.get_app_config(__name__).models_module = sys.modules[__name__]  # all in one file: the models are here


class Incident(models.Model):
    severity = models.CharField(max_length=20)
    kind = models.CharField(max_length=50)
    title = models.CharField(max_length=200)


def correlated(get_response):
    """Middleware: every event that a request causes carries its id."""

    def middleware(request):
        token = correlation_id.set(request.headers.get("X-Request-ID"))
        try:
            return get_response(request)
        finally:
            correlation_id.reset(token)

    return middleware


@require_POST
@transaction.atomic
def create(request):
    try:
        wanted = json.loads(request.body)
    except ValueError as error:
        return JsonResponse({"error": f"the body is no JSON: {error}"}, status=400)
    if wrong := what_is_wrong(wanted):
        return JsonResponse({"error": wrong}, status=400)
    incident = Incident.objects.create(severity=wanted["severity"], kind=wanted["type"], title=wanted["title"])
    number = f"INC-{incident.pk}"
    publish_on_commit(IncidentCreated(number, incident.severity, incident.kind, incident.title))
    if wanted["severity"] not in ("low", "high", "critical"):
        transaction.set_rollback(True)  # and nothing is published
        return JsonResponse({"error": "severity is low, high or critical"}, status=400)
    return JsonResponse({"incident_id": number}, status=201)


def what_is_wrong(wanted):
    """In words; nothing where it can be stored."""
    if not isinstance(wanted, dict):
        return "the body is no JSON object"
    wrong = [name for name in ("severity", "type", "title") if not isinstance(wanted.get(name), str)]
    return f"missing, or no text: {', '.join(wrong)}" if wrong else None


urlpatterns = [path("incidents", create)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
