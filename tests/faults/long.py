"""The long run: random faults under load, as many as asked for, and a table of what they did.

    tox -e faults-long -- [--broker nats|kafka|both] [--faults N] [--seed S]

It prints the seed, which makes the same faults again, and ends with exit code 1 if anything acknowledged was
lost, stored twice or never sent, or a call overran its time-out.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable

from history import History, Verdict, judge
from load import Publishers, all_handled, handlers, last
from rigs import RIGS, Rig
from waiting import until

from incident_messaging import MessagingConfig, MessagingService

#: Seconds that a publish may take before its error; longer than any fault here lasts.
TIMEOUT = 30.0
PATIENCE = 120.0


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


def run(name: str, faults: int, seed: int) -> tuple[Verdict, Counter[str]]:
    chance, done, history = random.Random(seed), Counter[str](), History()
    with RIGS[name]() as rig, MessagingService(MessagingConfig.from_mapping(rig.settings)) as service:
        with handlers(service, history, concurrency=4), Publishers(service, history, threads=8, timeout=TIMEOUT):
            for number in range(faults):
                flows(history, chance.randint(100, 2000))
                fault = chance.choice(sorted(FAULTS))
                FAULTS[fault](rig, chance)
                done[fault] += 1
                print(f"{name}: {number + 1} of {faults}, {fault}, {history.acknowledged:,} acknowledged")  # noqa: T201
            flows(history, 500)
        with handlers(service, history, concurrency=4):
            assert until(all_handled(history), PATIENCE), "not everything that was acknowledged was handled in time"
        return judge(history, rig.stored("load")), done


def flows(history: History, more: int) -> None:
    """Wait for so many more acknowledgements, so that every fault meets traffic."""
    goal = history.acknowledged + more
    assert until(lambda: history.acknowledged >= goal, PATIENCE), "the load does not flow again"


def row(name: str, verdict: Verdict, faults: Counter[str], took: float) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(faults.items()))
    return (
        f"{name}: {verdict.acknowledged:,} acknowledged through {faults.total()} faults ({kinds}) in {took:.0f} s;"
        f" lost {len(verdict.lost)}, acknowledged and not in the log {len(verdict.not_stored)},"
        f" twice in the log {len(verdict.stored_twice)}, never sent {len(verdict.unexpected)},"
        f" handled again {verdict.handled_again:,}, overruns {len(verdict.overruns)},"
        f" longest stall {verdict.stall:.1f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", choices=[*RIGS, "both"], default="both")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}")  # noqa: T201
    rows, failed = [], False
    for name in RIGS if options.broker == "both" else [options.broker]:
        begun = time.monotonic()
        verdict, faults = run(name, options.faults, options.seed)
        rows.append(row(name, verdict, faults, time.monotonic() - begun))
        failed |= bool(
            verdict.lost or verdict.not_stored or verdict.stored_twice or verdict.unexpected or verdict.overruns
        )
    print(*rows, sep="\n")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
