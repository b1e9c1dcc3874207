"""The bench on which every backend runs the same cases."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from bench import Bench
from features import BACKENDS, Features
from not_asked import CASES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each case for each backend that has what the case needs; what it is not asked is told at the end."""
    if "features" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("needs")
    needed = marker.args if marker else ()
    for features in BACKENDS:
        for reason in features.lacks(*needed):
            CASES.setdefault(f"{features.name}: {reason}", set()).add(metafunc.definition.name)
    able = [features for features in BACKENDS if not features.lacks(*needed)]
    metafunc.parametrize("features", able, ids=lambda features: features.name, indirect=True, scope="session")


@pytest.fixture(scope="session")
def features(request: pytest.FixtureRequest) -> Features:
    return request.param


@pytest.fixture(scope="session")
def settings(features: Features, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The configuration of the backend; its broker runs for the whole session."""
    return dict(features.settings(request.getfixturevalue))


@pytest.fixture
def bench(
    features: Features, settings: dict[str, Any], request: pytest.FixtureRequest, nothing_left_behind: None
) -> Iterator[Bench]:
    """Services of one backend, which share a prefix that nobody else has."""
    given = {**settings, "topic_prefix": f"t-{uuid.uuid4().hex[:10]}"}
    with Bench(features, given, features.foreign(request.getfixturevalue)) as bench:
        yield bench
