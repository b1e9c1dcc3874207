"""The long runs: each puts one broker under one kind of fault, many times, and judges what became of it."""

from __future__ import annotations

import random
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from history import History, Verdict, judge, name_of
from load import Pipeline, Publishers, all_handled, flows, handlers, last
from programs import CONSUMER, FORKS, process, said
from rigs import Rig
from waiting import until

from incident_messaging import MessagingConfig, MessagingError, MessagingService, Timeout

#: Seconds that a publish may take before its error; longer than any fault here lasts.
TIMEOUT = 30.0
PATIENCE = 180.0

Faults = Counter[str]


@attrs.frozen(kw_only=True)
class Task:
    """What a run is to do.

    Attributes:
        faults: How many.
        messages: How many are to be acknowledged at least.
        seed: What draws the same faults again.
    """

    faults: int
    messages: int
    seed: int

    def say(self, words: str) -> None:
        print(words, flush=True)  # noqa: T201


def new_service(rig: Rig) -> MessagingService:
    settings = rig.settings | {"publish_timeout_ms": int(TIMEOUT * 1000)}
    return MessagingService(MessagingConfig.from_mapping(settings))


def mixed(rig: Rig, task: Task) -> tuple[History, Faults]:
    """Kills, freezes, resets, swallowed directions and slow lines, drawn at random; eight threads publish and wait."""
    chance, done, history = random.Random(task.seed), Counter[str](), History()
    with new_service(rig) as service:
        with handlers(service, history, concurrency=4), Publishers(service, history, threads=8, timeout=TIMEOUT):
            for number in range(task.faults):
                flows(history, chance.randint(100, 2000), PATIENCE)
                fault = chance.choice(sorted(FAULTS))
                FAULTS[fault](rig, chance)
                done[fault] += 1
                task.say(f"{number + 1} of {task.faults}, {fault}, {history.acknowledged:,} acknowledged")
            flows(history, 500, PATIENCE)
        finish(service, history)
    return history, done


def kills(rig: Rig, task: Task) -> tuple[History, Faults]:
    """The broker is killed again and again under a full window of publishes."""
    history, between = History(), task.messages // task.faults
    with new_service(rig) as service:
        with handlers(service, history, concurrency=2), Pipeline(service, history, timeout=TIMEOUT):
            for number in range(task.faults):
                flows(history, between, PATIENCE)
                rig.broker.kill()
                rig.broker.start()
                task.say(f"kill {number + 1} of {task.faults}, {history.acknowledged:,} acknowledged")
            flows(history, between, PATIENCE)
        finish(service, history)
    return history, Counter(kill=task.faults)


def consumers(rig: Rig, task: Task) -> tuple[History, Faults]:
    """A process that consumes is killed again and again."""
    history = new_file()
    payloads = [{"key": f"k{n % 50}", "n": n} for n in range(task.messages)]
    with history.path.open("a") as file:  # at once: a line each would take its time
        file.writelines(f'["{kind}", "{name_of(each)}", 0, 0]\n' for kind in ("sent",) for each in payloads)
    with new_service(rig) as service:
        service.publish_batch("load", payloads, key=lambda payload: payload["key"])
    with history.path.open("a") as file:
        file.writelines(f'["acknowledged", "{name_of(each)}", 0, 0]\n' for each in payloads)
    handled = Growth(history.path)
    for number in range(task.faults):
        goal = handled.lines() + 2 * task.messages // (task.faults + 1)
        with process(CONSUMER, rig, history.path):
            assert until(lambda goal=goal: handled.lines() >= goal, PATIENCE), said(history)
        task.say(f"kill {number + 1} of {task.faults}, {handled.lines() - 2 * len(payloads):,} lines of handlers")
    with process(CONSUMER, rig, history.path):
        assert until(all_handled(history), PATIENCE), said(history)
    return history, Counter(kill=task.faults)


def forks(rig: Rig, task: Task) -> tuple[History, Faults]:
    """A process forks while its threads publish; its children exit, hand over and leave, or publish and close."""
    history = new_file()
    with process(FORKS, rig, history.path, str(task.faults)) as parent:
        assert parent.wait(3600.0) == 0, said(history)
    assert said(history) == ""
    return history, Counter(fork=task.faults)


def interrupts(rig: Rig, task: Task) -> tuple[History, Faults]:
    """Ctrl-C again and again in a main thread that consumes and publishes what it got."""
    history, main = History(), threading.main_thread().ident
    assert main is not None
    exposed, stop, met = threading.Event(), threading.Event(), 0

    def interrupt() -> None:
        chance = random.Random(task.seed)
        while not stop.wait(chance.uniform(0.005, 0.06)):
            if exposed.is_set():  # else it might come where nothing catches it
                exposed.clear()
                signal.pthread_kill(main, signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts us in the background has it ignored
    with new_service(rig) as service:
        with (
            Publishers(service, history, threads=1, pause=0.0005),
            service.subscribe("load", group="g", prefetch=50, timeout=30.0) as subscription,
        ):
            thread = threading.Thread(target=interrupt, name="test-interrupt")
            thread.start()
            try:
                while met < task.faults:
                    try:
                        exposed.set()
                        _consume_and_publish(service, subscription, history, met)
                    except KeyboardInterrupt:
                        met += 1
            finally:
                stop.set()
                thread.join()
        finish(service, history)
    return history, Counter(interrupt=met)


def _consume_and_publish(service: MessagingService, subscription: Any, history: History, round_: int) -> None:
    for number, delivery in enumerate(subscription):
        name = name_of(delivery.payload)
        history.note("started", name)
        delivery.ack()
        history.note("handled", name)
        if number % 5 == 0 and not name.startswith("main"):
            payload = {"key": f"main{round_}", "n": number}
            history.note("sent", name_of(payload))
            try:
                service.publish("load", payload, key=payload["key"], timeout=TIMEOUT)
            except MessagingError as error:
                unknown = isinstance(error, Timeout) and error.maybe_delivered
                history.note("unknown" if unknown else "failed", name_of(payload))
            else:
                history.note("acknowledged", name_of(payload))


def kill(rig: Rig, _chance: random.Random) -> None:
    rig.broker.kill()
    rig.broker.start()


def freeze(rig: Rig, chance: random.Random) -> None:
    rig.broker.freeze()
    last(chance.uniform(0.2, 2.5))
    rig.broker.thaw()


def reset(rig: Rig, _chance: random.Random) -> None:
    rig.proxy.reset()


def swallow(rig: Rig, chance: random.Random) -> None:
    setattr(rig.proxy, chance.choice(["drop_up", "drop_down"]), True)
    last(chance.uniform(0.2, 3.0))
    rig.proxy.heal()


def delay(rig: Rig, chance: random.Random) -> None:
    rig.proxy.delay = chance.uniform(0.01, 0.2)
    last(1.0)
    rig.proxy.heal()


FAULTS: dict[str, Callable[[Rig, random.Random], None]] = {
    "kill": kill, "freeze": freeze, "reset": reset, "swallow": swallow, "delay": delay,
}  # fmt: skip


def finish(service: MessagingService, history: History) -> None:
    """Handle what is left."""

    def done() -> bool:  # the count first: it costs nothing
        return history.count("handled") >= history.acknowledged and all_handled(history)()

    with handlers(service, history, concurrency=4):
        while not done():
            goal = history.count("handled") + 1_000
            assert until(lambda goal=goal: history.count("handled") >= goal or done(), PATIENCE), (
                f"{history.count('handled')} of {history.acknowledged} were handled, and no more come"
            )


class Growth:
    """How many lines a file has, without reading it twice."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._lines = 0

    def lines(self) -> int:
        self._lines += self._file.read().count(b"\n")
        return self._lines


def new_file() -> History:
    return History(Path(tempfile.mkdtemp(prefix="faults-")) / "history")


Run = Callable[[Rig, Task], tuple[History, Faults]]

#: The runs by name, each with its number of faults, and of messages where it counts them.
RUNS: dict[str, tuple[Run, int, int]] = {
    "mixed": (mixed, 100, 0),
    "kills": (kills, 100, 1_000_000),
    "consumers": (consumers, 50, 200_000),
    "forks": (forks, 1_000, 0),
    "interrupts": (interrupts, 1_000, 0),
}


def verdict(rig: Rig, history: History) -> Verdict:
    return judge(history, rig.stored("load"))
