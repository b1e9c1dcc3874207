"""``incident-messaging schema``."""

from __future__ import annotations

import json

import click

from incident_messaging.commands.common import Sources, configured, failing, json_flag
from incident_messaging.schemas import asyncapi, json_schema

__all__ = ["schema"]


@click.command()
@configured
@click.option(
    "--asyncapi", "whole", is_flag=True, help="Print an AsyncAPI 3.0 document of the configured brokers and topics."
)
@json_flag
def schema(sources: Sources, whole: bool, as_json: bool) -> None:
    """Print the JSON Schema (2020-12) of every incident event and of the envelope on the wire.

    The output is JSON either way, with --json on one line. No broker is asked. The configuration counts for
    --asyncapi alone; what that prints names no user and no secret.

    Exit code: 0; 2 for wrong usage, and if the configuration is not allowed.
    """
    with failing():
        document = asyncapi(sources.load()) if whole else json_schema()
        click.echo(json.dumps(document) if as_json else json.dumps(document, indent=2))
