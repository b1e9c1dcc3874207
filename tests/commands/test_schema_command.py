"""The command ``incident-messaging schema``; what it prints is looked into by ``tests/unit/test_schemas.py``."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from incident_messaging import MessagingConfig
from incident_messaging.commands import commands
from incident_messaging.schemas import asyncapi, json_schema


@pytest.mark.parametrize("form", [["--json"], []])
def test_it_prints_the_schema_or_the_document(form: list[str]) -> None:
    schema = CliRunner().invoke(commands, ["schema", *form])
    assert (schema.exit_code, schema.stderr) == (0, "")
    assert json.loads(schema.stdout) == json_schema()
    assert (schema.stdout.count("\n") == 1) == bool(form)
    arguments = ["--asyncapi", "--set", "backend=both", "--set", "topic_prefix=ops", *form]
    document = CliRunner().invoke(commands, ["schema", *arguments])
    assert (document.exit_code, document.stderr) == (0, "")
    assert json.loads(document.stdout) == asyncapi(MessagingConfig.load(backend="both", topic_prefix="ops"))


def test_a_configuration_that_is_not_allowed_counts_for_asyncapi_alone() -> None:
    wrong = ["--set", "topic_prefix=a b"]
    assert CliRunner().invoke(commands, ["schema", *wrong]).exit_code == 0
    document = CliRunner().invoke(commands, ["schema", "--asyncapi", *wrong])
    assert (document.exit_code, document.stdout) == (2, "")
    assert document.stderr.startswith("Error: topic_prefix: topic 'a b' is not allowed")
