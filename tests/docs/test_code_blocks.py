"""The code that the documentation shows does what it says, on real brokers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import page_code
import pytest
from page_code import DOCS

#: Languages of what is shown beside Python.
OTHER_LANGUAGES = {"console", "toml", "ini", "json", "text"}
PLACES = {"memory", "nats", "kafka", "both", "pytest"}
SECONDS = 90

RUNS = [(page, where) for page in page_code.pages() for where in page_code.runs(page)]


def _named(page: Path) -> str:
    return page.relative_to(DOCS).with_suffix("").as_posix()


def _environment(page: Path, where: str, **more: str) -> dict[str, str]:
    """What a page's code finds in its environment: where the brokers of this session are."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("INCIDENT_MESSAGING_")}
    return (
        kept
        | more
        | {
            "PYTHONPATH": os.pathsep.join([str(Path(page_code.__file__).parent), str(Path(__file__).parents[1])]),
            "INCIDENT_MESSAGING_BACKEND": where,
            "INCIDENT_MESSAGING_TOPIC_PREFIX": re.sub(r"\W+", "-", f"docs-{_named(page)}-{where}"),
        }
    )


def _python(*arguments: str, **options) -> None:
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, **options)
    assert done.returncode == 0, f"\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def _pages(*places: str) -> pytest.MarkDecorator:
    found = [run for run in RUNS if run[1] in places]
    return pytest.mark.parametrize(("page", "where"), found, ids=[f"{_named(page)}-{where}" for page, where in found])


@_pages("memory")
def test_the_code_of_a_page_runs_in_memory(page, where, tmp_path):
    _python(page_code.__file__, str(page), env=_environment(page, where), cwd=tmp_path)


@_pages("nats", "kafka", "both")
def test_the_code_of_a_page_runs_on_brokers(page, where, nats_server, kafka_broker, tmp_path):
    environment = _environment(
        page,
        where,
        INCIDENT_MESSAGING_NATS__SERVERS=nats_server.url,
        INCIDENT_MESSAGING_KAFKA__BOOTSTRAP_SERVERS=kafka_broker.bootstrap_servers,
    )
    _python(page_code.__file__, str(page), env=environment, cwd=tmp_path)


@_pages("pytest")
def test_the_tests_of_a_page_pass(page, where, tmp_path):
    (tmp_path / "test_of_the_page.py").write_text(page_code.as_module(page))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    _python("-m", where, "-q", "-p", "no:cacheprovider", "test_of_the_page.py", cwd=tmp_path)


@pytest.mark.parametrize("page", page_code.pages(), ids=_named)
def test_no_code_escapes(page):
    text = page.read_text()
    languages = re.findall(r"^ *\.\. code-block::(.*)$", text, re.MULTILINE)
    shown = [block for block in page_code.blocks(page) if block.shown]
    assert {language.strip() for language in languages} <= {"python", *OTHER_LANGUAGES}
    assert len(shown) == sum(language.strip() == "python" for language in languages)
    assert not re.search(r"^ *(\.\. (code|sourcecode|literalinclude)::|>>>)", text, re.MULTILINE)
    assert all(block.code for block in page_code.blocks(page))
    if shown:
        assert page_code.runs(page), "a page with Python says where its code runs"
        assert set(page_code.runs(page)) <= PLACES


def test_there_is_code():
    assert len(RUNS) > 5
