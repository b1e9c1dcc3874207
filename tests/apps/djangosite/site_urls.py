"""Incidents come in by REST, in a transaction; pages can be read."""

import json
import os

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from pager.models import Incident

from incident_messaging import IncidentCreated
from incident_messaging.contrib.django import get_service, publish_on_commit

RELEASE = "first"


def create(request: HttpRequest) -> JsonResponse:
    asked = json.loads(request.body)
    with transaction.atomic():
        Incident.objects.create(number=asked["id"])
        publish_on_commit(IncidentCreated(asked["id"], "critical", "database", "it is down"))
        if asked.get("fails"):
            raise ValueError("the request fails behind the event")
    return JsonResponse({"release": RELEASE}, status=201)


def pages(request: HttpRequest) -> JsonResponse:
    wait = float(request.GET.get("wait", 50.0))
    delivery = get_service().consume_one("pages.oncall", timeout=wait, group="readers")
    return JsonResponse({"page": delivery and delivery.payload})


def about(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"release": RELEASE, "pid": os.getpid()})


urlpatterns = [path("", about), path("incidents", create), path("pages", pages)]
