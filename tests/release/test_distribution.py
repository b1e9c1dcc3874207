"""What is released: sdist and wheel are made, are in order, and work where nothing else of the project is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PACKAGE = TOP / "incident_messaging"

#: What a build reads; the work tree itself stays as it is.
SOURCES = ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")

SECONDS = 120

PUBLISHES = """
import incident_messaging
from incident_messaging import IncidentCreated, MessagingConfig, MessagingService
with MessagingService(MessagingConfig(backend="memory")) as service:
    service.publish_incident_created("INC-1", "low", "database", "slow")
    delivery = service.consume_one("incidents.created", IncidentCreated)
print(incident_messaging.__file__, delivery.payload.title)
"""


def run(*command: str | Path, expected: int = 0, **more: str) -> str:
    """What a command said, without anything of this environment's Python in its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "INCIDENT_"))}
    done = subprocess.run(
        [str(part) for part in command], env=clean | more, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The two files, made as docs/releasing.rst says, from a copy; and the copy."""
    copy = tmp_path_factory.mktemp("source")
    shutil.copytree(PACKAGE, copy / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        shutil.copy(TOP / name, copy)
    run(sys.executable, "-m", "build", copy)
    (sdist,) = (copy / "dist").glob("*.tar.gz")
    (wheel,) = (copy / "dist").glob("*.whl")
    return {"sdist": sdist, "wheel": wheel, "source": copy}


@pytest.fixture(scope="module")
def clean(built: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with nothing but the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    install(folder / "bin", str(built["wheel"]))
    return folder / "bin"


def install(programs: Path, what: str) -> None:
    pip = (sys.executable, "-m", "pip", "--python", programs / "python", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-compile", what)
    run(*pip, "check")


def test_the_index_would_take_both(built: Mapping[str, Path]) -> None:
    said = run(sys.executable, "-m", "twine", "check", "--strict", built["sdist"], built["wheel"], NO_COLOR="1")
    assert said.count("PASSED") == 2, said


def test_both_have_all_of_the_package_and_nothing_else(built: Mapping[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as sdist:
        in_sdist = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    with zipfile.ZipFile(built["wheel"]) as wheel:
        in_wheel = set(wheel.namelist())
    top = built["source"]
    files = {f"{path.relative_to(top)}" for path in (top / PACKAGE.name).rglob("*") if path.is_file()}
    assert {name for name in in_sdist if name.startswith(f"{PACKAGE.name}/")} == files
    assert {name for name in in_wheel if ".dist-info/" not in name} == files
    assert {"LICENSE", "README.md", "setup.cfg", "setup.py", "pyproject.toml", "PKG-INFO"} <= in_sdist
    assert any(re.search(r"dist-info/(licenses/)?LICENSE$", name) for name in in_wheel)


def code(text: str) -> list[str]:
    return re.findall(r"```.*?```", text, re.DOTALL)


def test_the_text_for_the_index_needs_no_checkout(built: Mapping[str, Path]) -> None:
    """An index resolves no link into the source, and its readers have no tox."""
    readme = (TOP / "README.md").read_text("utf-8")
    with zipfile.ZipFile(built["wheel"]) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        text = wheel.read(metadata).decode().partition("\n\n")[2]
    assert text.startswith(readme[:200])
    assert re.findall(r"\]\((?!https?://)[^)]*\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)) == []
    assert [line for line in text.splitlines() if "docs/" in line or "tox" in line or "checkout" in line] == []
    kept = code(re.sub(r"<!-- checkout -->.*?<!-- /checkout -->", "", readme, flags=re.DOTALL))
    assert code(text) == kept
    assert len(kept) > 3
    assert "a transactional outbox" in text


def test_it_works_where_nothing_else_is(clean: Path, built: Mapping[str, Path]) -> None:
    said = run(clean / "python", "-I", "-c", PUBLISHES)
    where, _, title = said.strip().partition(" ")
    assert (clean.parent in Path(where).parents, title) == (True, "slow")
    assert "pip install 'incident-messaging[cli]'" in run(clean / "incident-messaging", "--version", expected=1)

    install(clean, f"{built['wheel']}[cli]")
    version = built["wheel"].name.split("-")[1]
    assert run(clean / "incident-messaging", "--version") == f"incident-messaging {version}\n"
