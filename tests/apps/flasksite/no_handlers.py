"""An application that declares no handler."""

from flask import Flask

from incident_messaging.contrib.flask import Messaging

app = Flask(__name__)
app.config["INCIDENT_MESSAGING"] = {"backend": "memory"}
Messaging(app)
