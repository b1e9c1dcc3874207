"""What the benchmarks make of what they measured, and that they can measure."""

from __future__ import annotations

import ast
import csv
from pathlib import Path
from typing import Any

import pytest
from benchmarks import contestants, rows, scaling, stages
from benchmarks.figures import Ratio, median, quantiles, ratio, verdict
from benchmarks.parts import NAMES
from benchmarks.processes import Failed, Process
from benchmarks.report import write_tables
from benchmarks.tables import all_of, as_text, of_part
from benchmarks.tasks import CONTESTANTS, ROWS

NO_PEERS = Path("no", "python")


def row(**seconds: list[float | None]) -> dict[str, Any]:
    """A row in which the SDK was asked for 1,000 messages a round, and all others for 100."""
    rounds = zip(*seconds.values(), strict=True)
    return {
        "rounds": [
            {who: took for who, took in zip(seconds, turn, strict=True) if took is not None} for turn in rounds
        ],
        "messages": {who: 1000 if who == "sdk" else 100 for who in seconds},
        "failures": {},
        "versions": {"sdk": {"nats-py": "2.0"}},
    }  # fmt: skip


def results(**parts: Any) -> dict[str, Any]:
    about = {"cores": 2, "processor": "one", "memory_gib": 1, "system": "s", "python": "p", "commit": "c", "date": "d"}
    return {
        "machine": about, "arguments": ["--quick"], "brokers": {"nats": "2.10"}, "failures": {}, "seconds": 60,
        "parts": {name.replace("_", "-"): part for name, part in parts.items()},
    }  # fmt: skip


def test_a_median_is_of_messages_a_second() -> None:
    measured = row(sdk=[1.0, 4.0, 2.0], other=[1.0, 1.0, 0.5])

    assert median(measured, "sdk") == 500
    assert median(measured, "other") == 100
    assert median(measured, "nobody") is None


def test_a_ratio_is_of_medians_and_its_spread_is_of_rounds() -> None:
    measured = row(sdk=[1.0, 4.0, 2.0], other=[1.0, 1.0, 0.5])

    # a second: 1000, 250, 500 beside 100, 100, 200
    assert ratio(measured, "other") == Ratio(middle=5.0, low=2.5, high=10.0)


def test_a_ratio_counts_the_rounds_in_which_both_took_part() -> None:
    measured = row(sdk=[1.0, 0.001, 2.0], other=[1.0, None, 1.0])

    assert ratio(measured, "other") == Ratio(middle=7.5, low=5.0, high=10.0)
    assert ratio(row(sdk=[1.0], other=[None]), "other") is None


@pytest.mark.parametrize(
    ("found", "goal", "said"),
    [
        (Ratio(1.5, 1.0, 2.0), 1.5, "reached"),
        (Ratio(1.49, 1.4, 2.0), 1.5, "missed"),
        (None, 1.5, "not measured"),
        (Ratio(1.5, 1.0, 2.0), None, ""),
    ],
)
def test_a_goal_is_reached_by_the_ratio_of_medians(found: Ratio | None, goal: float | None, said: str) -> None:
    assert verdict(found, goal) == said


def test_quantiles_are_values_that_were_measured() -> None:
    assert quantiles([float(value) for value in range(1000, -1, -1)]) == list(range(1001))
    assert quantiles([7.0]) == [7] * 1001


def test_every_goal_has_a_line_whether_it_was_measured_or_not() -> None:
    measured = row(**{"sdk": [0.5, 0.5], "nats-py": [0.1, 0.1], "mq-bridge": [0.01, 0.01]})
    found = all_of(results(jetstream_batch={"jetstream": measured}))["goals"].rows

    assert len(found) == sum(len(task.goals) for task in ROWS.values()) + 1
    assert found[0][1:] == ["nats-py", "1.5 ×", "2.00 ×", "2.00 to 2.00", "reached"]
    assert found[1][1:] == ["mq-bridge", "1 ×", "0.20 ×", "0.20 to 0.20", "missed"]
    assert {line[-1] for line in found[2:]} == {"not measured"}


def test_the_import_has_a_goal_of_its_own() -> None:
    found = all_of(results(imports={"nothing": [0.02, 0.03, 0.9], "import": [0.18, 0.17, 0.9], "loaded": []}))

    assert found["goals"].rows[-1] == ["import incident_messaging", "", "150 ms", "150 ms", "", "reached"]
    assert found["imports"].rows[-2][:2] == ["the difference", "150"]


def test_who_failed_is_named_with_the_reason() -> None:
    measured = row(**{"sdk": [1.0], "mq-bridge": [None]})
    measured["failures"]["mq-bridge"] = "RuntimeError: away"

    text = as_text(of_part("jetstream-batch", results(jetstream_batch={"jetstream": measured})))

    [line] = [line for line in text.splitlines() if "mq-bridge" in line]
    assert "not measured" in line
    assert "FAILED: RuntimeError: away" in line


def test_the_report_is_files_of_all_tables(tmp_path: Path) -> None:
    growth = {"jetstream": {"1": {"turns": [10.0, 30.0, 20.0]}, "64": {"turns": [], "failure": "no answer"}}}
    write_tables(
        results(threads=growth, memory={"jetstream": {"messages": 1000, "bytes": [2**20, 2**21, 2**22]}}), tmp_path
    )

    assert _read(tmp_path / "threads.csv")[1:] == [["JetStream", "1", "20"], ["JetStream", "64", "FAILED: no answer"]]
    assert _read(tmp_path / "memory.csv")[1:] == [["JetStream", "1,000", "2", "2,097"]]
    assert _read(tmp_path / "latency.csv")[1][0] == "not measured"
    assert {path.stem for path in tmp_path.iterdir()} == {"machine", "goals", "speeds", *NAMES} - set(ROWS)


def _read(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_every_contestant_of_a_row_has_the_call() -> None:
    folder = Path(contestants.__file__).parent
    for task in ROWS.values():
        for who in ("sdk", *task.contestants):
            module = ast.parse((folder / f"{CONTESTANTS[who].module}.py").read_text())
            [methods] = [
                {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
                | {target.id for part in node.body if isinstance(part, ast.Assign) for target in part.targets}
                for node in module.body
                if isinstance(node, ast.ClassDef)
            ]
            assert task.call in methods, f"{who} cannot {task.call}"
        assert set(task.goals) <= set(task.contestants)


@pytest.mark.slow
def test_contestants_take_turns_and_who_cannot_is_named() -> None:
    with stages.stage("jetstream") as on:
        found = rows.measure("jetstream-iterate", on, NO_PEERS, messages=200, rounds=2)
        with Process("confluent-kafka", {"address": on.settings["address"]}, NO_PEERS) as process:
            assert "confluent-kafka" in process.versions
            with pytest.raises(Failed, match="no answer within 0 s"):
                process.ask("consume", timeout=0.2, topic="nothing", count=1)

    assert set(found["failures"]) == {"mq-bridge"}
    assert "no environment of the peers" in found["failures"]["mq-bridge"]
    for turn in found["rounds"]:
        assert sorted(turn) == ["nats-py", "nats-py+uvloop", "sdk"]
        assert all(seconds > 0 for seconds in turn.values())
    assert list(found["rounds"][1]) == list(found["rounds"][0])[::-1]


@pytest.mark.slow
def test_the_sdk_alone_is_measured_point_by_point() -> None:
    with stages.stage("jetstream") as on:
        grown = scaling.threads(on, points=(1, 2), rounds=2, seconds=0.05)
        sizes = scaling.sizes(on, points=(1_000,), rounds=1, seconds=0.05)

    assert {point: len(of["turns"]) for point, of in grown.items()} == {"1": 2, "2": 2}
    assert all(rate > 0 for of in grown.values() for rate in of["turns"])
    assert set(sizes["1000"]["turns"][0]) == {"publish", "consume"}
