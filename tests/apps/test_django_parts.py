"""The parts of the Django application, each program in a process of its own: Django is set up once in a process."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from app_kit import HERE, outcome

from incident_messaging.brokers.ports import free_port

pytestmark = pytest.mark.slow

SITE = HERE / "djangosite"
MEMORY = {"backend": "memory"}

HEAD = """
import json, logging, os, sys, threading, time
logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
import django
django.setup()
from django.db import transaction
from incident_messaging import *
from incident_messaging.contrib.django import declare_handlers, get_service, handler, publish_on_commit

def event(number=1, title="it is down"):
    return IncidentCreated(f"INC-{number}", "critical", "database", title)

def published(group="test"):
    return list(get_service().consume("incidents.created", IncidentCreated, group=group, timeout=0.2))

def say(**facts):
    print(json.dumps(facts))
"""


def python(code: str, setting: object = MEMORY, **more: str) -> tuple[dict[str, Any], list[str]]:
    """What the code says, and the lines that it logs; no setting at all where it is None."""
    environment = {"PYTHONPATH": str(SITE), "DJANGO_SETTINGS_MODULE": "site_settings", **more}
    if setting is not None:
        environment["SITE_MESSAGING"] = json.dumps(setting)
    done, output, errors = outcome(["-W", "error", "-c", HEAD + code], environment, HERE)
    assert done == 0, errors
    return json.loads(output), errors.splitlines()


# -- publish_on_commit ----------------------------------------------------------------------------


def test_an_event_goes_out_with_the_commit_and_never_with_a_rollback() -> None:
    said, logged = python("""
with transaction.atomic():
    publish_on_commit(event(1))
    before = len(published())
    with transaction.atomic():
        publish_on_commit(event(2))
    try:
        with transaction.atomic():
            publish_on_commit(event(3))
            raise ValueError
    except ValueError:
        pass
try:
    with transaction.atomic():
        publish_on_commit(event(4))
        raise ValueError
except ValueError:
    pass
publish_on_commit(event(5))
found = published()
say(before=before, found=[(d.payload.incident_id, d.key, d.topic) for d in found])
""")

    committed = [[f"INC-{number}", f"INC-{number}", "incidents.created"] for number in (1, 2, 5)]
    assert said == {"before": 0, "found": committed}
    assert logged == []


def test_an_event_carries_the_correlation_and_the_time_of_the_call() -> None:
    said, _ = python("""
from incident_messaging.context import correlation_id
with transaction.atomic():
    publish_on_commit(event(1))
    correlation_id.set("of the request")
    publish_on_commit(event(2))
    called = int(time.time())
    while int(time.time()) == called:
        time.sleep(0.02)
    correlation_id.set("of the commit")
say(found=[(d.metadata.correlation_id, d.metadata.timestamp <= called) for d in published()])
""")

    assert said["found"] == [[None, True], ["of the request", True]]


FAILURES = {
    "the service is closed": ("get_service().close(); ev = event()", "closed", "BackendUnavailable"),
    "the window is full": ("get_service().publish_nowait('jobs', {}); ev = event()", "in flight", "BackendUnavailable"),
    "it cannot be written": ("ev = event(title='\\ud800')", "surrogate", "SerializationError"),
    "it is too large": ("ev = event(title='x' * 2000)", "max_message_size", "PublishFailed"),
    "it is no event": ("ev = {'a': 1}", "must be an IncidentEvent, not dict", "ConfigurationError"),
    "there is no such database": ("ev = event(); using = 'none'", "none", "ConnectionDoesNotExist"),
    "the setting is wrong": (
        "from django.conf import settings; settings.INCIDENT_MESSAGING = {'backend': 'x'}; ev = event()",
        "backend must be",
        "ConfigurationError",
    ),
    "the broker cannot be reached": ("ev = event()", "connection failed", "ConnectionFailed"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_is_logged_and_counted_and_never_raised(case: str) -> None:
    prepare, cause, error = FAILURES[case]
    refused = "cannot be reached" in case

    with socket.create_server(("127.0.0.1", 0)) as silent:  # it lets everybody in and says nothing
        port = free_port() if refused else silent.getsockname()[1]
        setting = {"nats": {"servers": f"nats://127.0.0.1:{port}"}, "max_in_flight": 1, "max_message_size": 1000}
        said, logged = python(
            f"""
from contextlib import suppress
using = None
{prepare}
"""
            + """
from prometheus_client import REGISTRY
def counted():
    samples = [s for metric in REGISTRY.collect() for s in metric.samples]
    return {s.labels["error"]: s.value for s in samples
            if s.name == "messaging_publish_failures_total" and s.labels["topic"] != "jobs"}
logging.getLogger("incident_messaging.nats").propagate = False
lines = []
class Lines(logging.Handler):
    def emit(self, record):
        lines.append(record.name)
logging.getLogger().addHandler(Lines())  # behind the one that writes
with transaction.atomic():
    publish_on_commit(ev, using=using)
deadline = time.monotonic() + 30
while not (counted() and "incident_messaging.django" in lines) and time.monotonic() < deadline:
    time.sleep(0.02)
with suppress(ConfigurationError):
    get_service().close(0.2)
say(counted=counted())
""",
            setting,
        )

    assert said == {"counted": {error: 1.0}}
    ours = [line for line in logged if "publish_on_commit" in line]
    assert len(ours) == 1
    what = "{'a': 1}" if case == "it is no event" else "Created of INC-1"
    assert ours[0].startswith(f"ERROR incident_messaging.django: publish_on_commit: {what} was not published: ")
    assert cause in ours[0]


def test_a_request_does_not_wait_for_a_broker_that_is_silent(nats_server_factory: Any) -> None:
    server = nats_server_factory()
    server.freeze()

    said, _ = python(
        """
begun = time.monotonic()
for number in range(100):
    with transaction.atomic():
        publish_on_commit(event(number))
took = time.monotonic() - begun
get_service().close(0.2)
say(took=took)
""",
        {"backend": "nats", "nats": {"servers": [server.url]}},
    )

    server.thaw()
    assert said["took"] < 5.0


# -- the service and its setting ------------------------------------------------------------------


def test_all_threads_have_one_service_and_a_changed_setting_makes_another() -> None:
    said, _ = python("""
from django.test import override_settings
seen = []
threads = [threading.Thread(target=lambda: seen.append(get_service())) for _ in range(20)]
for thread in threads: thread.start()
for thread in threads: thread.join()
first = get_service()
with override_settings(INCIDENT_MESSAGING={"BACKEND": "memory", "TOPIC_PREFIX": "changed"}):
    second = get_service()
    second.publish("jobs", {})
with override_settings(DEBUG=False):
    third = get_service()
    kept = get_service()
say(one=set(seen) == {first}, prefix=second.config.topic_prefix, closed=[not s.health().ok for s in (first, second)],
    anew=third not in (first, second), back=third.config == first.config, kept=kept is third)
""")

    assert said == {"one": True, "prefix": "changed", "closed": [True, True], "anew": True, "back": True, "kept": True}


def test_a_service_of_the_projects_own_outlives_changed_settings() -> None:
    said, _ = python("""
from django.test import override_settings
from incident_messaging import MessagingConfig, MessagingService
own = MessagingService(MessagingConfig(backend="memory"))
with override_settings(INCIDENT_MESSAGING=own):
    kept = get_service()
    with override_settings(INCIDENT_MESSAGING={"backend": "memory"}):
        another = get_service()
    again = get_service()
    again.publish("jobs", {})
say(kept=kept is own, another=another is not own, closed=not another.health().ok, again=again is own)
""")

    assert said == {"kept": True, "another": True, "closed": True, "again": True}


def test_a_forked_child_publishes_with_the_service_of_its_parent() -> None:
    said, _ = python("""
parent = get_service()
parent.publish("jobs", {})
child = os.fork()
if not child:
    publish_on_commit(event())
    os._exit(0 if [d.key for d in published()] == ["INC-1"] else 1)
_, status = os.waitpid(child, 0)
say(code=os.waitstatus_to_exitcode(status), same=get_service() is parent)
""")

    assert said == {"code": 0, "same": True}


def test_without_a_setting_there_are_the_defaults() -> None:
    said, _ = python("say(same=get_service().config == MessagingConfig())", None)

    assert said == {"same": True}


# -- handlers -------------------------------------------------------------------------------------

HANDLERS = """
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from incident_messaging.testing import memory_service, run_until_idle
call_command("migrate", "--run-syncdb", verbosity=0)
service = settings.INCIDENT_MESSAGING = memory_service(MessagingConfig(backend="memory"))
assert get_service() is service
seen = []
"""


def test_handlers_of_installed_applications_are_found_and_can_be_run_by_hand() -> None:
    said, _ = python(
        HANDLERS
        + """
from pager.models import Incident
Incident.objects.create(number="INC-1")
count = declare_handlers(service)
service.start_handlers()
publish_on_commit(event())
run_until_idle(service)
say(count=count, paged=Incident.objects.get().paged)
""",
        SITE_FILE="file:handlers?mode=memory&cache=shared",
    )

    assert said == {"count": 1, "paged": True}


def test_a_delivery_closes_a_connection_that_is_too_old_but_none_within_a_transaction(tmp_path: Path) -> None:
    """Django's own test cases put a transaction round each test."""
    said, _ = python(
        HANDLERS
        + """
@handler("jobs")
def look(delivery):
    connection.ensure_connection()
    seen.append(id(connection.connection))

declare_handlers(service)
service.start_handlers()
with transaction.atomic():
    inside = id(connection.connection)
    service.publish("jobs", {})
    run_until_idle(service)
kept = connection.connection is not None
service.publish("jobs", {})
run_until_idle(service)
say(same=seen[0] == inside, kept=kept, closed=connection.connection is None, deliveries=len(seen))
""",
        SITE_FILE=str(tmp_path / "site.sqlite3"),
    )

    assert said == {"same": True, "kept": True, "closed": True, "deliveries": 2}


def test_a_coroutine_function_is_no_handler() -> None:
    said, _ = python("""
async def handle(delivery): ...
try:
    handler("jobs")(handle)
except ConfigurationError as error:
    say(error=str(error))
""")

    assert "plain function" in said["error"]


# -- system checks --------------------------------------------------------------------------------


def check(setting: object, *options: str, tmp_path: Path) -> tuple[int, str]:
    environment = {} if setting is None else {"SITE_MESSAGING": json.dumps(setting)}
    code, output, errors = outcome(
        [str(SITE / "manage.py"), "check", "--tag", "incident_messaging", *options], environment, tmp_path
    )
    return code, output + errors


@pytest.mark.parametrize(
    ("setting", "number", "text", "hint"),
    [
        ("nats", "E001", "settings.INCIDENT_MESSAGING must be a mapping, not str.", "Write for example"),
        (
            {"kafka": {"groupid": "g"}},
            "E002",
            "settings.INCIDENT_MESSAGING: kafka.groupid is unknown.",
            "The nearest known name is kafka.group_id.",
        ),
        ({"max_in_flight": 0}, "E002", "settings.INCIDENT_MESSAGING: max_in_flight must be", "Its names and values"),
    ],
)
def test_a_check_explains_a_wrong_setting(setting: object, number: str, text: str, hint: str, tmp_path: Path) -> None:
    code, said = check(setting, tmp_path=tmp_path)

    assert code == 1
    assert f"?: (incident_messaging.{number}) {text}" in said
    assert f"HINT: {hint}" in said


@pytest.mark.parametrize(("setting", "number"), [(None, "W001"), (MEMORY, "W002")])
def test_a_deployment_is_warned_where_events_may_go_nowhere(setting: object, number: str, tmp_path: Path) -> None:
    assert "no issues" in check(setting, tmp_path=tmp_path)[1]

    code, said = check(setting, "--deploy", tmp_path=tmp_path)

    assert code == 0
    assert re.findall(r"\(incident_messaging\.(\w+)\)", said) == [number]
