"""What the pages for maintainers name is there: environments of tox, files, folders."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PAGES = ("contributing", "releasing", "versioning", "dashboards")


@pytest.fixture(params=PAGES)
def text(request: pytest.FixtureRequest) -> str:
    return (TOP / "docs" / f"{request.param}.rst").read_text("utf-8")


def test_environments_exist(text: str) -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(TOP / "tox.ini")
    named = {name for names in re.findall(r"tox -e ([\w,-]+)", text) for name in names.split(",")}
    assert {name for name in named if f"testenv:{name}" not in tox} == set()


def test_files_exist(text: str) -> None:
    named = set(re.findall(r"(?<![\w/])((?:tests|docs|incident_messaging|\.ci)/[\w./-]*\w/?)", text))
    assert {path for path in named if not (TOP / path).exists()} == set()


def test_something_is_named() -> None:
    pages = "".join((TOP / "docs" / f"{page}.rst").read_text("utf-8") for page in PAGES)
    assert len(set(re.findall(r"tox -e ([\w,-]+)", pages))) > 5
