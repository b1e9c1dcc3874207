"""The configuration's reference in the documentation is made of the classes, whole."""

import importlib.util
from pathlib import Path

import attrs
import pytest

from incident_messaging.config import KafkaConfig, MessagingConfig, NatsConfig, RetryPolicy

CLASSES = (MessagingConfig, NatsConfig, KafkaConfig, RetryPolicy)


@pytest.fixture(scope="module")
def reference():
    file = Path(__file__).parents[2] / "docs" / "_ext" / "config_rows.py"
    spec = importlib.util.spec_from_file_location("config_rows", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_and_nothing_else_is_told(reference, cls):
    fields = [field.name for field in attrs.fields(cls)]
    assert [row.field for row in reference.rows(cls)] == fields
    assert list(reference.meanings(cls)) == fields


@pytest.mark.parametrize("cls", CLASSES)
def test_a_meaning_is_a_sentence(reference, cls):
    for row in reference.rows(cls):
        assert row.meaning[0].isupper() or row.meaning.startswith(("`", ".", "librdkafka"))
        assert row.meaning.endswith(".")
        assert row.takes


def test_defaults_are_shown_as_they_are_written(reference):
    shown = {row.field: row.default for cls in CLASSES for row in reference.rows(cls)}
    assert shown["max_message_size"] == "1_048_576"
    assert shown["backend"] == "MessagingBackend.NATS"
    assert shown["nats"] == "NatsConfig()"
    assert shown["servers"] == "['nats://localhost:4222']"
    assert shown["no_retry"] == "[SerializationError]"
    assert shown["extra"] == "{}"
    assert shown["enabled"] == "True"


def test_the_table_has_a_line_for_every_cell(reference):
    lines = list(reference.table(NatsConfig))
    fields = attrs.fields(NatsConfig)
    assert sum(line.startswith("   * - ``") for line in lines) == len(fields)
    assert len(lines) == 4 + 4 * (1 + len(fields))
    assert r"     - 1 to 255 characters without blanks and . \* > / \\, or None" in lines
