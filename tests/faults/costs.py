"""What a fault costs: how long nothing is acknowledged, or handled, once the fault is over.

    tox -e faults-costs -- [--rounds 5] [--broker nats|kafka|both]

* ``restart``: the broker is killed and started; seconds from its first answer to the next acknowledgement.
* ``partition``: the line swallows everything for two seconds; seconds from its end to the next acknowledgement.
* ``leave`` and ``killed member``: one of two members goes, in good order or by SIGKILL; seconds until all that is
  published from then on is handled by the other.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from history import History
from load import Publishers, handlers, last
from programs import CONSUMER, process
from rigs import RIGS, Rig
from waiting import until

from incident_messaging import MessagingConfig, MessagingService

PATIENCE = 90.0


def restart(rig: Rig, service: MessagingService) -> float:
    with load(service) as history:
        rig.broker.kill()
        last(0.2)  # what had been acknowledged before is noted by then
        seen = history.acknowledged
        rig.broker.start()
        answers = time.monotonic()
        assert until(lambda: history.acknowledged > seen, PATIENCE)
        return time.monotonic() - answers


def partition(rig: Rig, service: MessagingService) -> float:
    with load(service) as history:
        rig.proxy.drop_up = rig.proxy.drop_down = True
        last(2.0)
        seen, healed = history.acknowledged, time.monotonic()
        rig.proxy.heal()
        assert until(lambda: history.acknowledged > seen, PATIENCE)
        return time.monotonic() - healed


def leave(rig: Rig, service: MessagingService) -> float:
    history = History()
    with handlers(service, history, start="latest"), new_service(rig) as other:
        with handlers(other, history, start="latest"), Publishers(service, history, threads=8, pause=0.02):
            assert until(lambda: history.count("handled") > 100, PATIENCE)
        return time_to_handle(service, history)


def killed_member(rig: Rig, service: MessagingService) -> float:
    file = History(Path(tempfile.mkdtemp(prefix="costs-")) / "history")
    history = History()
    with handlers(service, history):
        with process(CONSUMER, rig, file.path), Publishers(service, history, threads=8, pause=0.02):
            assert until(lambda: len(file.of("handled")) > 100, PATIENCE)
        return time_to_handle(service, history)


def time_to_handle(service: MessagingService, history: History) -> float:
    begun = time.monotonic()
    for number in range(30):
        service.publish("load", {"key": f"after{number}", "n": 0}, key=f"after{number}")
    wanted = {f"after{number}/0" for number in range(30)}
    assert until(lambda: wanted <= set(history.of("handled")), PATIENCE)
    return time.monotonic() - begun


@contextmanager
def load(service: MessagingService) -> Iterator[History]:
    history = History()
    with Publishers(service, history, threads=2, timeout=60.0):
        assert until(lambda: history.acknowledged > 50, PATIENCE)
        yield history


def new_service(rig: Rig) -> MessagingService:
    return MessagingService(MessagingConfig.from_mapping(rig.settings | {"publish_timeout_ms": 60_000}))


FAULTS: dict[str, Callable[[Rig, MessagingService], float]] = {
    "restart": restart, "partition": partition, "leave": leave, "killed member": killed_member,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", choices=[*RIGS, "both"], default="both")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for broker in RIGS if options.broker == "both" else [options.broker]:
        with RIGS[broker]() as rig:
            for name, fault in FAULTS.items():
                with new_service(rig) as service:
                    service.publish("load", {"key": "warm", "n": 0})
                    took = [fault(rig, service) for _ in range(options.rounds)]
                print(f"{name} on {broker}: median {statistics.median(took):.2f} s, most {max(took):.2f} s")  # noqa: T201


if __name__ == "__main__":
    main()
