"""Consumers in trouble of their own making: too slow, too full, joined by others, on a clock that jumps."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from history import History, judge, name_of
from load import Publishers, all_handled, handlers, last
from programs import HEAD, process, said
from rigs import Rig
from waiting import until

from incident_messaging import Delivery, MessagingService

NewService = Callable[..., MessagingService]

PATIENCE = 60.0

pytestmark = pytest.mark.slow


def fill(service: MessagingService, history: History, count: int, keys: int = 5) -> set[str]:
    payloads = [{"key": f"k{n % keys}", "n": n} for n in range(count)]
    for payload in payloads:
        history.note("sent", name_of(payload))
    service.publish_batch("load", payloads, key=lambda payload: payload["key"])
    for payload in payloads:
        history.note("acknowledged", name_of(payload))
    return {name_of(payload) for payload in payloads}


def slow(rig: Rig) -> dict[str, Any]:
    """Limits of the brokers that handlers of these tests exceed: 1 s on JetStream, 6 s on Kafka."""
    if "nats" in rig.settings:
        return {"nats": rig.settings["nats"] | {"ack_wait_ms": 1_000}}
    return {"kafka": rig.settings["kafka"] | {"extra": {"max.poll.interval.ms": 6_000}}}


def test_a_handler_slower_than_the_broker_allows_keeps_its_message(rig: Rig, new_service: NewService) -> None:
    history, service = History(), new_service(**slow(rig))
    names = fill(service, history, 8)

    def take_long(delivery: Delivery[Any]) -> None:
        if delivery.payload["n"] == 0:
            last(8.0)

    with handlers(service, history, act=take_long, concurrency=2):
        assert until(lambda: names <= set(history.of("handled")), PATIENCE)
    judge(history, rig.stored("load")).require(again=0)


def test_members_that_come_and_go_while_handlers_run(rig: Rig, new_service: NewService) -> None:
    """What a handler holds when its partition is taken away may be handled by another one too, and is counted."""
    history, service = History(), new_service()
    joins, prefetch = 4, 50

    def take_a_moment(_delivery: Delivery[Any]) -> None:
        last(0.005)

    with Publishers(service, history, threads=2, timeout=30.0, pause=0.002):
        with handlers(service, history, act=take_a_moment, concurrency=4, prefetch=prefetch):
            for _ in range(joins):
                goal = history.count("handled") + 100
                assert until(lambda goal=goal: history.count("handled") >= goal, PATIENCE)
                with handlers(new_service(), history, act=take_a_moment, concurrency=4, prefetch=prefetch):
                    goal = history.count("handled") + 100
                    assert until(lambda goal=goal: history.count("handled") >= goal, PATIENCE)
    with handlers(service, history):
        assert until(all_handled(history), PATIENCE)
    # Between processes JetStream keeps no order; on Kafka a handler that outlives a revocation overlaps.
    judge(history, rig.stored("load")).require(again=2 * joins * 2 * (prefetch + 4), order=False)


def test_ten_thousand_unsettled_messages(rig: Rig, new_service: NewService) -> None:
    history, service = History(), new_service()
    names = fill(service, history, 10_000, keys=100)
    with service.subscribe("load", group="g", auto_ack=False, prefetch=10_000, timeout=30.0) as subscription:
        held = []
        while len(held) < 10_000:
            batch = subscription.next_batch(1_000, timeout=PATIENCE)
            assert batch, f"{len(held)} of 10,000 came"
            for delivery in batch:
                history.note("started", name_of(delivery.payload))
            held += batch
        assert subscription.next(timeout=0.2) is None
        for delivery in reversed(held):  # the worst order for a broker that confirms by offset
            delivery.ack()
            history.note("handled", name_of(delivery.payload))
    assert set(history.of("handled")) == names
    with service.subscribe("load", group="g", timeout=30.0) as again:
        assert again.next(timeout=1.0) is None, "all of them are settled"
    judge(history, rig.stored("load")).require(again=0)


#: Moves the clock that tells the time, and leaves those that only count: two hours ahead, a day back, in turn.
#: librdkafka is left alone: it hands the time to the kernel to wait by it (``pthread_cond_timedwait``), and the
#: kernel's own clock is not moved here.
SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <time.h>
static int (*real)(clockid_t, struct timespec *);
int clock_gettime(clockid_t id, struct timespec *at) {
    struct timespec counting;
    Dl_info caller;
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, at);
    if (id != CLOCK_REALTIME) return result;
    if (dladdr(__builtin_return_address(0), &caller) && strstr(caller.dli_fname, "rdkafka")) return result;
    real(CLOCK_MONOTONIC, &counting);
    at->tv_sec += (counting.tv_sec % 2) ? 7200 : -86400;
    return result;
}
"""

JUMPING = (
    HEAD
    + """
seen = threading.Event()
def handle(delivery):
    history.note("started", name_of(delivery.payload))
    history.note("handled", name_of(delivery.payload))
times = {int(time.time()) - int(time.monotonic()) for _ in range(40) if not time.sleep(0.1)}
assert max(times) - min(times) > 80_000, times
with service.subscribe("load", group="g", callback=handle, start="latest", timeout=40.0):
    for number in range(400):
        payload = {"key": "k", "n": number}
        history.note("sent", name_of(payload))
        service.publish("load", payload, key="k", timeout=10.0)
        history.note("acknowledged", name_of(payload))
        time.sleep(0.01)
    while len(history.of("handled")) < 400:
        time.sleep(0.05)
assert service.close() == []
"""
)


def test_a_clock_that_jumps_each_second_changes_nothing(
    rig: Rig, new_service: NewService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here to make a library that moves the clock")
    (tmp_path / "shim.c").write_text(SHIM)
    shim = tmp_path / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", shim, tmp_path / "shim.c", "-ldl"], check=True)
    new_service().publish("load", {"key": "q", "n": 0})
    history = History(tmp_path / "history")
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    with process(JUMPING, rig, history.path) as running:
        monkeypatch.delenv("LD_PRELOAD")
        assert running.wait(PATIENCE) == 0, said(history)
    judge(history, [name for name in rig.stored("load") if name != "q/0"]).require(again=0)


def test_a_subscription_ends_nobody_elses_wait(rig: Rig, new_service: NewService) -> None:
    """Fifty threads iterate one subscription; each message is handed out once, and all end with it."""
    history, service = History(), new_service()
    names = fill(service, history, 500, keys=50)
    subscription = service.subscribe("load", group="g", timeout=30.0)

    def iterate() -> None:
        for delivery in subscription:
            history.note("started", name_of(delivery.payload))
            history.note("handled", name_of(delivery.payload))

    threads = [threading.Thread(target=iterate, name="test-iterate") for _ in range(50)]
    for thread in threads:
        thread.start()
    assert until(lambda: names <= set(history.of("handled")), PATIENCE)
    subscription.close()
    for thread in threads:
        thread.join(PATIENCE)
    assert not [thread for thread in threads if thread.is_alive()]
    judge(history, rig.stored("load")).require(again=0)
