"""Where threads have been replaced by green ones the service says so at once, instead of hanging."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_kit import outcome
from server_kit import environment

#: No broker is asked.
SETTINGS = {"backend": "nats", "nats": {"servers": ["nats://127.0.0.1:9"]}}

CONSTRUCTED = "import server_site"
#: The module was imported first: the service learns of it at its first use.
USED = "server_site.service.publish('work', {})"

PATCHES = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import warnings; warnings.simplefilter('ignore'); import eventlet; eventlet.monkey_patch()",
}


@pytest.mark.parametrize("late", [False, True], ids=["before the import", "after the import"])
@pytest.mark.parametrize("name", PATCHES)
def test_a_patched_process_is_refused_with_the_remedy(name: str, late: bool, tmp_path: Path) -> None:
    steps = [CONSTRUCTED, PATCHES[name], USED] if late else [PATCHES[name], CONSTRUCTED]
    code, _, errors = outcome(["-c", "\n".join(steps)], environment(SETTINGS), tmp_path)
    assert code == 1
    assert f"ConfigurationError: {name} has replaced this process's threads" in errors
    assert "gunicorn -k gthread" in errors


def test_a_gunicorn_with_gevent_workers_does_not_start(tmp_path: Path) -> None:
    command = ["-m", "gunicorn", "--bind", "127.0.0.1:0", "--workers", "1", "--worker-class", "gevent"]
    given = environment(SETTINGS, HOME=str(tmp_path))  # where it puts a socket of its own
    code, _, errors = outcome([*command, "server_site:app"], given, tmp_path)
    assert code == 3, errors  # gunicorn: a worker failed to boot
    assert "ConfigurationError: gevent has replaced this process's threads" in errors


def test_gevent_that_patches_no_threads_is_let_be(tmp_path: Path) -> None:
    patch = "from gevent import monkey; monkey.patch_all(thread=False)"
    code, _, errors = outcome(["-c", f"{patch}\n{CONSTRUCTED}"], environment(SETTINGS), tmp_path)
    assert code == 0, errors
