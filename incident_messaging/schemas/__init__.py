"""What travels, described for programs: JSON Schema of events and envelope, AsyncAPI of the topics. Pure."""

from incident_messaging.schemas.asyncapi import asyncapi
from incident_messaging.schemas.wire import json_schema

__all__ = ["asyncapi", "json_schema"]
