"""The long runs, and a table of what they came to.

    tox -e faults-long -- [--run mixed,kills,consumers,forks,interrupts] [--broker nats|kafka|both]
                          [--share 1.0] [--seed S]

It prints the seed, which draws the same faults again, and ends with exit code 1 if anything acknowledged was
lost, stored twice or never sent, or a call overran its time-out.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from history import Verdict
from rigs import RIGS
from runs import RUNS, Faults, Task, verdict


def row(name: str, found: Verdict, faults: Faults, took: float) -> str:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(faults.items()))
    return (
        f"{name}: {found.acknowledged:,} acknowledged through {faults.total():,} faults ({kinds}) in {took:.0f} s;"
        f" lost {len(found.lost)}, not in the log {len(found.not_stored)}, twice in the log"
        f" {len(found.stored_twice)}, never sent {len(found.unexpected)}, log out of order"
        f" {len(found.log_disordered)}, handled again {found.handled_again:,},"
        f" overruns {len(found.overruns)}, longest stall {found.stall:.1f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default=",".join(RUNS), help="names of runs, separated by commas")
    parser.add_argument("--broker", choices=[*RIGS, "both"], default="both")
    parser.add_argument("--share", type=float, default=1.0, help="a part of the faults and messages")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}")  # noqa: T201
    rows, failed = [], False
    for name in options.run.split(","):
        run, faults, messages = RUNS[name]
        task = Task(
            faults=max(1, int(faults * options.share)), messages=int(messages * options.share), seed=options.seed
        )
        for broker in RIGS if options.broker == "both" else [options.broker]:
            begun = time.monotonic()
            with RIGS[broker]() as rig:
                history, done = run(rig, task)
                took = time.monotonic() - begun
                found = verdict(rig, history)
            rows.append(row(f"{name} on {broker}", found, done, took))
            print(rows[-1], flush=True)  # noqa: T201
            failed |= bool(found.lost or found.not_stored or found.stored_twice or found.unexpected or found.overruns)
    print("", *rows, sep="\n")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
