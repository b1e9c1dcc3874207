"""Pages somebody for each incident, and notes it in the database."""

from incident_messaging import Delivery, IncidentCreated
from incident_messaging.contrib.django import get_service, handler
from pager.models import Incident


@handler("incidents.created", IncidentCreated, group="pager")
def page(delivery: Delivery[IncidentCreated]) -> None:
    number = delivery.payload.incident_id
    noted = Incident.objects.filter(number=number).update(paged=True)
    get_service().publish("pages.oncall", {"incident": number, "noted": noted})
