"""The command ``incident-messaging config``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner, Result

from incident_messaging.commands import commands
from incident_messaging.config import MessagingConfig

PREFIX = "INCIDENT_MESSAGING_"


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)

    def invoke(*arguments: str, **environment: str) -> Result:
        for name, text in environment.items():
            monkeypatch.setenv(f"{PREFIX}{name}", text)
        return CliRunner().invoke(commands, ["config", "show", *arguments])

    return invoke


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    def write(settings: dict[str, Any]) -> str:
        file = tmp_path / "messaging.json"
        file.write_text(json.dumps(settings))
        return str(file)

    return write


def settings_of(result: Result) -> dict[str, tuple[Any, str]]:
    """Every setting's value and source."""
    found = json.loads(result.stdout)["settings"]
    return {name: (one["value"], one["source"]) for name, one in found.items()}


def test_every_setting_is_shown(show: Callable[..., Result]) -> None:
    expected = {
        f"{outer.name}.{inner.name}" if inner else outer.name
        for outer in attrs.fields(MessagingConfig)
        for inner in (attrs.fields(outer.type) if attrs.has(outer.type) else [None])
    }
    assert len(expected) > 60
    result = show("--json")
    assert result.exit_code == 0
    settings = settings_of(result)
    assert set(settings) == expected
    assert {source for _, source in settings.values()} == {"default"}
    assert settings["backend"][0] == "nats"
    assert settings["nats.servers"][0] == ["nats://localhost:4222"]
    assert settings["retry.no_retry"][0] == ["SerializationError"]
    lines = show().stdout.splitlines()
    assert {line.partition(" = ")[0] for line in lines} == expected
    assert "max_in_flight = 10000  (default)" in lines


def test_each_value_says_where_it_came_from(
    show: Callable[..., Result], write: Callable[[dict[str, Any]], str]
) -> None:
    file = write(
        {
            "backend": "kafka", "topic_prefix": "file", "source": "file",
            "kafka": {"group_id": "file", "client_id": "file", "extra": {"linger.ms": 5, "client.rack": "a"}},
            "nats": {"user": "u", "password_file": "/file"},
        }
    )  # fmt: skip
    result = show(
        "--json", "--config", file, "--set", "source=set", "--set", "kafka.client_id=set",
        SOURCE="env", KAFKA__GROUP_ID="env", KAFKA__EXTRA="client.rack=b", NATS__PASSWORD="hunter2",
    )  # fmt: skip
    assert (result.exit_code, result.stderr) == (0, "")
    settings = settings_of(result)
    from_file = f"file {file}"
    assert settings["backend"] == ("kafka", from_file)
    assert settings["topic_prefix"] == ("file", from_file)
    assert settings["source"] == ("set", "--set")
    assert settings["kafka.client_id"] == ("set", "--set")
    assert settings["kafka.group_id"] == ("env", f"{PREFIX}KAFKA__GROUP_ID")
    assert settings["kafka.extra"] == (
        {"linger.ms": 5, "client.rack": "b"}, f"{from_file}, {PREFIX}KAFKA__EXTRA",
    )  # fmt: skip
    # A secret given anew replaces the file that held it.
    assert settings["nats.password"] == ("***", f"{PREFIX}NATS__PASSWORD")
    assert settings["nats.password_file"] == (None, "default")
    assert settings["max_in_flight"] == (10_000, "default")


SECRETS = {
    "nats": {"user": "u", "password": "hunter2"},
    "kafka": {
        "enable_sasl": True, "sasl_username": "u", "sasl_password": "hunter2", "enable_ssl": True,
        "ssl_cert_file": "/c", "ssl_key_file": "/k", "ssl_key_password": "hunter2", "extra": {"ssl.key.pem": "hunter2"},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        SECRETS,
        {"nats": {"token": "hunter2"}},
        {"nats": {"nkey_seed": "hunter2"}},
        {"nats": {"credentials_text": "hunter2"}},
        # What is not allowed is masked, too.
        {**SECRETS, "max_in_flight": 0},
        {"nats": {"pasword": "hunter2"}},
        {"nats": "hunter2"},
        {"nats": {"password": {"is": "hunter2"}}},
        {"nats": {"password": ["hunter2"]}},
        {"nats": {"servers": ["nats://u:hunter2@h"]}},
        {"kafka": {"extra": ["hunter2"]}},
        {"kafka": {"extra": {"sasl.jaas.config": "hunter2", "access.token": "hunter2"}}},
        {"kafka": {"bootstrap_servers": "u:hunter2@h:1"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", [["--json"], []], ids=["json", "text"])
def test_secrets_are_masked(
    show: Callable[..., Result], write: Callable[[dict[str, Any]], str], settings: dict[str, Any], form: list[str]
) -> None:
    result = show(*form, "--config", write(settings))
    assert "***" in result.stdout
    assert "hunter2" not in result.output


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["--set", "max_in_flight=0"], {}, "max_in_flight must be a whole number of at least 1, not 0"),
        (["--set", "kafka.groupid=g"], {}, "kafka.groupid is unknown; the nearest known name is kafka.group_id"),
        ([], {"MAX_IN_FLIGHT": "many"}, f"{PREFIX}MAX_IN_FLIGHT must be a whole number of at least 1, not 'many'"),
        ([], {"NATS__TOKEN": "t", "NATS__USER": "u"}, "nats"),
    ],
)
def test_what_is_not_allowed_is_told(
    show: Callable[..., Result], arguments: list[str], environment: dict[str, str], says: str
) -> None:
    result = show("--json", *arguments, **environment)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {says}")
    assert json.loads(result.stdout)["error"] == result.stderr.removeprefix("Error: ").removesuffix("\n")


def test_what_was_given_is_shown_also_where_it_is_not_allowed(
    show: Callable[..., Result], write: Callable[[dict[str, Any]], str]
) -> None:
    file = write({"kafka": {"session_timeout_ms": 0}, "source": "\x1b[2J"})
    result = show("--config", file, "--set", "kafka.group_id=g")
    assert result.exit_code == 2
    assert result.stdout.splitlines() == [
        f"kafka.session_timeout_ms = 0  (file {file})",
        'kafka.group_id = "g"  (--set)',
        f'source = "\\u001b[2J"  (file {file})',
    ]


def test_wrong_usage(show: Callable[..., Result], tmp_path: Path) -> None:
    assert show("--config", str(tmp_path / "none.toml")).exit_code == 2
    assert show("--set", "backend").exit_code == 2
    broken = tmp_path / "broken.toml"
    broken.write_text("backend =")
    result = show("--config", str(broken))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is not valid toml" in result.stderr
