"""A REST endpoint in Flask that opens and resolves incidents: each change is an event.

    pip install 'incident-messaging[flask]'
    flask --app rest_flask run
    curl -i localhost:5000/incidents -H 'Content-Type: application/json' \\
         -d '{"severity": "critical", "type": "database", "title": "primary is down"}'

The broker is chosen by the environment (INCIDENT_MESSAGING_BACKEND, INCIDENT_MESSAGING_NATS__SERVERS, ...),
NATS at localhost by default.
"""

from uuid import uuid4

from flask import Flask, abort, request
from werkzeug.exceptions import HTTPException

from incident_messaging import MessagingConfig, MessagingError
from incident_messaging.context import correlation_id
from incident_messaging.contrib.flask import Messaging

app = Flask(__name__)
app.config["INCIDENT_MESSAGING"] = MessagingConfig.from_env()
messaging = Messaging(app)


@app.before_request
def take_the_correlation_id():
    """Every event that the request causes carries it, and so do the events that those cause."""
    correlation_id.set(request.headers.get("X-Request-ID") or str(uuid4()))


@app.post("/incidents")
def create():
    severity, kind, title = wanted("severity", "type", "title")
    incident = f"INC-{uuid4().hex[:8]}"
    receipt = messaging.service.publish_incident_created(incident, severity, kind, title, timeout=5)
    return {"incident_id": incident, "message_id": receipt.message_id}, 201


@app.post("/incidents/<incident>/resolve")
def resolve(incident):
    [seconds] = wanted("resolution_time_secs")
    receipt = messaging.service.publish_incident_resolved(incident, seconds, timeout=5)
    return {"incident_id": incident, "message_id": receipt.message_id}


def wanted(*names):
    """Fields of the request's JSON; of what types they are is checked where the event is built."""
    body = request.get_json(silent=True)
    if not isinstance(body, dict):
        abort(400, "the body must be a JSON object, sent as application/json")
    if missing := [name for name in names if name not in body]:
        abort(400, f"missing: {', '.join(missing)}")
    return [body[name] for name in names]


@app.errorhandler(HTTPException)
def refused(error):
    return {"error": error.description}, error.code


@app.errorhandler(MessagingError)
def not_published(error):
    """Whoever called may try again where that can help; a refused value never gets better."""
    app.logger.warning("not published: %s", error)
    if error.retryable:
        return {"error": "the event could not be published"}, 503, {"Retry-After": "5"}
    return {"error": str(error)}, 422
