"""A Flask application: incidents come in by REST, a worker pages somebody, and the pages can be read."""

from __future__ import annotations

from flask import Flask, current_app, request

from incident_messaging import Delivery, IncidentCreated
from incident_messaging.contrib.flask import Messaging

messaging = Messaging()


@messaging.handler("incidents.created", IncidentCreated, group="pager")
def page(delivery: Delivery[IncidentCreated]) -> None:
    if delivery.payload.severity == "critical":
        messaging.service.publish("pages.oncall", {"incident": delivery.payload.incident_id, "by": current_app.name})


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_prefixed_env()
    messaging.init_app(app)

    @app.post("/incidents")
    def create() -> tuple[dict[str, str], int]:
        asked = request.get_json()
        receipt = messaging.service.publish_incident_created(asked["id"], asked["severity"], "database", "it is down")
        return {"message_id": receipt.message_id}, 201

    @app.get("/pages")
    def pages() -> dict[str, object]:
        wait = request.args.get("wait", 50.0, float)
        delivery = messaging.service.consume_one("pages.oncall", timeout=wait, group="readers")
        return {"page": delivery and delivery.payload}

    return app
