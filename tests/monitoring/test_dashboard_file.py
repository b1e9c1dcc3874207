"""The dashboard and the alerts name what the source has, all of it and nothing else."""

from __future__ import annotations

import json
import re
import warnings
from itertools import pairwise
from typing import Any

import pytest
import queries
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from queries import Query, dashboard, instruments, panels, series

with warnings.catch_warnings():  # the form of files that every Grafana imports is the older one of two
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.models.dashboard import Dashboard

DOCS = queries.MONITORING.parent
BOARD = dashboard()
RULES = [rule for group in yaml.safe_load(queries.ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]]
PANELS = queries.of_dashboard(BOARD)
ALERTS = queries.of_rules(RULES)

register_default_plugins()


def variables() -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in BOARD["templating"]["list"]}


@pytest.mark.parametrize("query", [*PANELS, *ALERTS], ids=lambda query: query.where)
def test_a_query_names_series_and_labels_that_exist(query: Query) -> None:
    known = series()
    named = queries.names(query.expr)
    assert named
    assert named - known.keys() == set()
    common = frozenset.union(*(known[name] for name in named))
    assert queries.labels(query.expr) - common == set()
    left = queries.kept(query.expr) if re.search(r"\b(sum|max|min|avg|count)\b", query.expr) else common
    assert query.shown - left == set(), "a label that the query does not keep"


@pytest.mark.parametrize("part", [PANELS, ALERTS], ids=["dashboard", "alerts"])
def test_no_metric_is_missing(part: list[Query]) -> None:
    read = {re.sub(r"_(total|bucket|sum|count)$", "", name) for query in part for name in queries.names(query.expr)}
    assert read == {instrument._name for instrument in instruments()}


def test_grafana_reads_the_dashboard_and_loses_nothing() -> None:
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(BOARD)))  # with Grafana's own types
    assert lost(BOARD, read) == []
    assert BOARD["schemaVersion"] == Dashboard().schema_version


def lost(ours: Any, read: Any, where: str = "") -> list[str]:
    """What is in ours and not, or different, in what was read."""
    if isinstance(ours, dict) and isinstance(read, dict):
        return [each for key, value in ours.items() for each in lost(value, read.get(key), f"{where}/{key}")]
    if isinstance(ours, list) and isinstance(read, list) and len(ours) == len(read):
        return [each for n, pair in enumerate(zip(ours, read, strict=True)) for each in lost(*pair, f"{where}[{n}]")]
    return [] if ours == read else [f"{where}: {ours!r} became {read!r}"]


def test_it_has_its_rows_and_its_variables() -> None:
    rows = [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"]
    assert rows == [
        "Publishing", "Consuming", "Dead letters", "Lag and in flight", "Connections", "Handlers", "Outbox",
    ]  # fmt: skip
    assert variables().keys() == {"datasource", "backend", "instance", "topic"}
    for name, variable in variables().items():
        if name != "datasource":
            assert queries.names(variable["definition"]) <= series().keys()
            assert variable["definition"].endswith(f", {name})")
    for panel in panels(BOARD):
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["description"]


@pytest.mark.parametrize("query", PANELS, ids=lambda query: query.where)
def test_every_variable_that_can_narrow_a_panel_does(query: Query) -> None:
    known = series()
    for name in queries.names(query.expr):
        chosen = {"backend", "topic", "instance"} & known[name]
        for matchers in re.findall(rf"{name}{{([^}}]*)}}", query.expr):
            assert {f'{label}=~"${label}"' for label in chosen} == set(matchers.split(", "))
    assert not re.search(r"messaging_\w+(?![\w{])", query.expr), "a series without matchers"


def test_panels_fill_their_rows_and_do_not_overlap() -> None:
    places: dict[int, list[dict[str, int]]] = {}
    for panel in BOARD["panels"]:
        places.setdefault(panel["gridPos"]["y"], []).append(panel["gridPos"])
    below = 0
    for y, row in sorted(places.items()):
        assert y == below
        assert len({place["h"] for place in row}) == 1
        assert row[0]["x"] == 0
        assert row[-1]["x"] + row[-1]["w"] == 24
        assert all(left["x"] + left["w"] == right["x"] for left, right in pairwise(row))
        below += row[0]["h"]
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_means_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].rpartition("/")[2].partition("#")
    text = (DOCS / page.replace(".html", ".rst")).read_text("utf-8")
    assert f".. _{anchor}:" in text or anchor in {section_id(title) for title in titles(text)}, f"no #{anchor}"


def titles(text: str) -> list[str]:
    return re.findall(r"^(.+)\n(?:=+|-+|~+|\^+)\n", text, re.MULTILINE)


def section_id(title: str) -> str:
    """As docutils makes it of a heading."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def test_the_page_tells_of_every_alert_and_of_no_other() -> None:
    told = set(re.findall(r"``(Messaging\w+)``", (DOCS / "dashboards.rst").read_text("utf-8")))
    assert told == {rule["alert"] for rule in RULES}


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    cases = (queries.Path(__file__).parent / "live" / "alerts_test.yml").read_text("utf-8")
    assert set(re.findall(r'alertname="(\w+)"', cases)) == {rule["alert"] for rule in RULES}
