"""A Django project whose database and brokers come from the environment."""

import json
import os

SECRET_KEY = "not secret"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "site_urls"
INSTALLED_APPS = ["incident_messaging.contrib.django", "pager"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

DATABASES = {
    "default": json.loads(os.environ.get("SITE_DATABASE", "null"))
    or {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("SITE_FILE", ":memory:")}
}

if "SITE_MESSAGING" in os.environ:
    INCIDENT_MESSAGING = json.loads(os.environ["SITE_MESSAGING"])
