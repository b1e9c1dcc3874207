"""An incident console: one page that lists incidents live, and opens, escalates, assigns and resolves them.

    python docs/examples/console/app.py --backend nats      # or kafka, or both
    flask --app docs/examples/console/app run

The brokers' addresses come from the environment (INCIDENT_MESSAGING_NATS__SERVERS, ...), localhost by default.
It has no logins: it is an example, to be read, and to be run where nobody else can reach it.
"""

from __future__ import annotations

import argparse
import time
import uuid
from typing import Any

from dead_letters import DeadLetterBox
from feed import Feed
from flask import Blueprint, Flask, Response, abort, current_app, jsonify, render_template, request
from incidents import Incident
from werkzeug.exceptions import HTTPException
from werkzeug.serving import WSGIRequestHandler

from incident_messaging import (
    ConfigurationError,
    IncidentAssigned,
    IncidentCreated,
    IncidentEscalated,
    IncidentEvent,
    IncidentResolved,
    MessagingConfig,
    MessagingError,
    SerializationError,
)
from incident_messaging.contrib.flask import Messaging

SEVERITIES = ("critical", "high", "medium", "low")
PUBLISH_SECS = 5.0  # how long a click waits for the broker
RETRY_SECS = 5  # what a page is told when there is none
LONGEST = 200  # characters of a text

messaging = Messaging()
console = Blueprint("console", __name__)


def create_app(config: MessagingConfig | None = None) -> Flask:
    """The application; ``None`` is the configuration that the environment gives."""
    app = Flask(__name__)
    app.config["INCIDENT_MESSAGING"] = config or MessagingConfig.from_env()
    messaging.init_app(app)
    with app.app_context():
        app.extensions["console"] = (Feed(messaging.service), DeadLetterBox(messaging.service))
    app.register_blueprint(console)
    return app


def feed() -> Feed:
    found: Feed = current_app.extensions["console"][0]
    return found


def box() -> DeadLetterBox:
    found: DeadLetterBox = current_app.extensions["console"][1]
    return found


@console.before_request
def take_only_json() -> None:
    """A form on another site can be sent here by any browser; JSON cannot, unless this server allows it."""
    if request.method == "POST" and not request.is_json:
        abort(415, "the Content-Type must be application/json")


@console.get("/")
def page() -> str:
    return render_template("console.html", severities=SEVERITIES)


@console.get("/api/events")
def events() -> Response:
    """Server-sent events. A reload asks with the query, a browser that reconnects with the header."""
    last_id = request.headers.get("Last-Event-ID") or request.args.get("last-event-id")
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Response(feed().stream(last_id), mimetype="text/event-stream", headers=headers)


@console.get("/api/incidents")
def list_incidents() -> Response:
    return jsonify(incidents=[incident.to_dict() for incident in feed().incidents()])


@console.post("/api/incidents")
def open_incident() -> tuple[Response, int]:
    severity = _text("severity")
    if severity not in SEVERITIES:
        abort(400, f"severity must be one of {', '.join(SEVERITIES)}")
    incident_id = f"INC-{uuid.uuid4().hex[:8].upper()}"
    return _publish(IncidentCreated(incident_id, severity, _text("incident_type"), _text("title"))), 201


@console.post("/api/incidents/<incident_id>/escalate")
def escalate(incident_id: str) -> Response:
    incident = _unresolved(incident_id)
    return _publish(IncidentEscalated(incident_id, incident.level + 1))


@console.post("/api/incidents/<incident_id>/assign")
def assign(incident_id: str) -> Response:
    _unresolved(incident_id)
    return _publish(IncidentAssigned(incident_id, _text("assignee")))


@console.post("/api/incidents/<incident_id>/resolve")
def resolve(incident_id: str) -> Response:
    opened_at = _unresolved(incident_id).opened_at
    seconds = max(0, int(time.time()) - opened_at) if opened_at is not None else 0
    return _publish(IncidentResolved(incident_id, seconds))


@console.get("/api/dead-letters")
def list_dead_letters() -> Response:
    return jsonify(box().look())


@console.post("/api/dead-letters/redrive")
def redrive() -> Response:
    choice = {name: _text(name) for name in ("backend", "topic", "group", "exception")}
    return jsonify(box().redrive(**choice))


def _publish(event: IncidentEvent) -> Response:
    """Say it to everybody; the page, too, sees it when it comes back by the subscription."""
    messaging.service.publish_incident_event(event, timeout=PUBLISH_SECS)
    return jsonify(incident_id=event.incident_id)


def _unresolved(incident_id: str) -> Incident:
    incident = feed().get(incident_id)
    if incident is None:
        abort(404, f"there is no incident {incident_id}")
    if incident.is_resolved:
        abort(409, f"{incident_id} is resolved already")
    return incident


def _text(name: str) -> str:
    """A field of the request's JSON."""
    body: Any = request.get_json()
    value = body.get(name) if isinstance(body, dict) else None
    if not isinstance(value, str) or not value.strip():
        abort(400, f"{name} is missing")
    if len(value) > LONGEST:
        abort(400, f"{name} is longer than {LONGEST} characters")
    return value.strip()


@console.errorhandler(HTTPException)
def explain(error: HTTPException) -> tuple[Response, int]:
    return jsonify(error=error.description), error.code or 500


@console.errorhandler(MessagingError)
def refuse(error: MessagingError) -> tuple[Response, int, dict[str, str]]:
    if isinstance(error, (ConfigurationError, SerializationError)):
        return jsonify(error=str(error)), 400, {}
    text = f"The broker cannot be had: {error}."
    if getattr(error, "maybe_delivered", False):
        text += " It may have been stored all the same: look at the list before you repeat it."
    return jsonify(error=text), 503, {"Retry-After": str(RETRY_SECS)}


class RequestHandler(WSGIRequestHandler):
    timeout = 30.0  # seconds: a browser that takes nothing for so long is let go, and its thread with it


def main() -> None:
    parser = argparse.ArgumentParser(description="An incident console.")
    parser.add_argument("--backend", choices=("nats", "kafka", "both"), help="the broker, or both")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5000)
    args = parser.parse_args()
    chosen = {"backend": args.backend} if args.backend else {}
    app = create_app(MessagingConfig.load(**chosen))
    app.run(args.host, args.port, threaded=True, request_handler=RequestHandler)


if __name__ == "__main__":
    main()
