"""Django settings of the programs that the outbox's tests run; what differs comes from the environment."""

import json
import os

SECRET_KEY = "only for tests"
USE_TZ = True
INSTALLED_APPS = ["incident_messaging.contrib.django", "incident_messaging.contrib.django.outbox"]
_MEMORY = '{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}'
DATABASES = {"default": json.loads(os.environ.get("OUTBOX_DATABASE", _MEMORY))}
INCIDENT_MESSAGING = json.loads(os.environ.get("OUTBOX_MESSAGING", "{}"))
