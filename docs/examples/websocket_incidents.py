"""Incidents over a WebSocket, in Flask: every page that is open sees every event.

    pip install 'incident-messaging[flask]' flask-sock
    flask --app websocket_incidents run

and in the console of a browser:

    new WebSocket("ws://localhost:5000/incidents").onmessage = event => console.log(event.data)

With broadcast=True all sockets of a process share one broker consumer, however many are open. The broker is chosen
by the environment (INCIDENT_MESSAGING_BACKEND, INCIDENT_MESSAGING_NATS__SERVERS, ...), NATS at localhost by default.
"""

import json

from flask import Flask
from flask_sock import Sock

from incident_messaging import ConsumeFailed, IncidentEvent, MessagingConfig
from incident_messaging.contrib.flask import Messaging

app = Flask(__name__)
app.config["INCIDENT_MESSAGING"] = MessagingConfig.from_env()
app.config["SOCK_SERVER_OPTIONS"] = {"ping_interval": 25}  # notices readers that are gone without a word
messaging = Messaging(app)
sock = Sock(app)

#: WebSocket close code: try again later.
TRY_AGAIN = 1013


@sock.route("/incidents")
def incidents(socket):
    with messaging.service.subscribe("incidents.*", IncidentEvent, broadcast=True) as subscription:
        socket.send(json.dumps({"type": "Ready"}))  # from here on nothing is missed
        try:
            while socket.connected:
                if (delivery := subscription.next(timeout=1.0)) is not None:
                    event = delivery.payload
                    socket.send(json.dumps({"type": event.type, "incident_id": event.incident_id}))
        except ConsumeFailed as error:  # it reads too slowly, and has missed something
            socket.close(TRY_AGAIN, error.code)
