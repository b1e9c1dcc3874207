"""README.md: its ten lines run, its commands exist, its links lead somewhere."""

from __future__ import annotations

import configparser
import pathlib
import re
import subprocess
import sys
import uuid
from typing import Any

import pytest

TOP = pathlib.Path(__file__).resolve().parents[2]
README = (TOP / "README.md").read_text(encoding="utf-8")


def console(marker: str) -> str:
    found = re.search(rf"<!-- {marker} command -->\n```console\n\$ (.+)\n```", README)
    assert found is not None, f"README.md has no {marker} command"
    return found[1]


@pytest.mark.parametrize("backend", ["nats", "kafka"])
def test_the_ten_lines_publish_and_consume(backend: str, nats_server: Any, kafka_broker: Any) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    where = {
        "nats": f'nats={{"servers": ["{nats_server.url}"]}}',
        "kafka": f'kafka={{"bootstrap_servers": "{kafka_broker.bootstrap_servers}"}}',
    }[backend]
    own = f'MessagingConfig(backend="{backend}", topic_prefix="readme-{uuid.uuid4().hex[:8]}", {where})'
    program = code[1].replace('MessagingConfig(backend="nats")', own)
    assert program != code[1]

    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert (run.returncode, run.stdout, run.stderr) == (0, "page somebody: primary is down\n", "")


@pytest.mark.parametrize("marker", ["demo", "test"])
def test_the_commands_run_an_environment_that_exists(marker: str) -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(TOP / "tox.ini")
    name = re.search(r"tox -q -e (\w+)$", console(marker))
    assert name is not None
    assert f"testenv:{name[1]}" in tox


def test_ci_runs_the_test_command() -> None:
    script = (TOP / ".ci" / "run").read_text(encoding="utf-8")
    extract = re.search(r"^command=\$\((.+)\)$", script, re.MULTILINE)
    assert extract is not None
    found = subprocess.run(["bash", "-c", extract[1]], cwd=TOP, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == console("test")


def test_the_thirty_lines_are_those_that_the_demo_runs() -> None:
    program = (TOP / "incident_messaging" / "demo" / "forked.py").read_text(encoding="utf-8")
    [shown] = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "os.fork" in code]
    assert [part for part in shown.split("\n\n\n") if part.strip() not in program] == []


def test_the_flask_application_publishes(nats_server: Any) -> None:
    [shown] = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "import Flask" in code]
    own = f'{{"topic_prefix": "readme-{uuid.uuid4().hex[:8]}", "nats": {{"servers": ["{nats_server.url}"]}}}}'
    program = shown.replace('{"backend": "kafka"}', own)
    assert program != shown
    request = '{"incident_id": "INC-1", "severity": "low", "incident_type": "database", "title": "slow"}'
    program += (
        f"answer = app.test_client().post('/incidents', json={request})\nassert answer.status_code == 201, answer\n"
    )

    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert (run.returncode, run.stderr) == (0, "")


def test_every_link_leads_to_a_file() -> None:
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#:]+)\)", text)
    assert targets
    assert [target for target in targets if not (TOP / target).exists()] == []
