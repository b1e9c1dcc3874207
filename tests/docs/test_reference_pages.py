"""What the reference pages list is what the source has: nothing missing, nothing invented."""

from __future__ import annotations

import re
from typing import NamedTuple

import attrs
import pytest
from page_code import DOCS
from prometheus_client import Counter, Gauge, Histogram

import incident_messaging
from incident_messaging import MESSAGING_METRICS, IncidentEvent, MessagingError
from incident_messaging.events import VARIANTS

KINDS = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}


def page(name: str) -> str:
    return (DOCS / f"{name}.rst").read_text()


def sections(text: str) -> dict[str, str]:
    """What stands below each heading of the second level."""
    parts = re.split(r"^(.+)\n-+\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def definitions(text: str) -> dict[str, str]:
    """What stands below each term in double backticks."""
    return dict(re.findall(r"^``(\w+)``\n((?: {4}.*\n|\n(?= {4}))+)", text, re.MULTILINE))


def rows(text: str) -> list[list[str]]:
    """The cells of a list-table, without its head."""
    found = re.split(r"^ {3}\* - ", text, flags=re.MULTILINE)[2:]
    return [[" ".join(cell.split()) for cell in row.split("\n\n")[0].split("\n     - ")] for row in found]


CASES = [(kind, code) for kind in MessagingError.__subclasses__() for code in kind.codes]


def test_the_errors_page_has_every_class_and_code_and_no_other():
    told = {(name, code) for name, text in sections(page("errors")).items() for code in definitions(text)}
    assert told == {(kind.__name__, code) for kind, code in CASES}


@pytest.mark.parametrize(("kind", "code"), CASES, ids=[f"{kind.__name__}-{code}" for kind, code in CASES])
def test_every_code_is_told_whole(kind, code):
    told = definitions(sections(page("errors"))[kind.__name__])[code]
    fields = dict(re.findall(r"^ {4}:(\w+): (.+(?:\n {5,}.+)*)", told, re.MULTILINE))
    assert re.findall(r"^ {4}:(\w+):", told, re.MULTILINE) == ["Retryable", "Text", "Cause", "Find", "Do"]
    assert fields["Retryable"] == ("yes" if kind("text", code=code).retryable else "no")
    assert all(fields[name].endswith(".") for name in ("Cause", "Do"))


class Metric(NamedTuple):
    name: str
    kind: str
    labels: str


def metrics() -> set[Metric]:
    found = set()
    assert MESSAGING_METRICS.messages_published  # they are made at the first look
    for instrument in vars(MESSAGING_METRICS).values():
        suffix = "_total" if isinstance(instrument, Counter) else ""
        labels = ", ".join(instrument._labelnames)
        found.add(Metric(f"{instrument._name}{suffix}", KINDS[type(instrument)], labels))
    return found


def test_the_metrics_page_has_every_instrument_and_no_other():
    told = {Metric(row[0].strip("`"), row[1], row[2]) for row in rows(page("metrics"))}
    assert told == metrics()


def test_the_metrics_page_names_every_attribute():
    text = sections(page("metrics"))["Reading them in code"]
    assert all(f"``{attribute}``" in text for attribute in vars(MESSAGING_METRICS))


def test_the_events_page_has_every_event_and_its_fields():
    told = {row[0].strip("`"): row[1:] for row in rows(page("events"))}
    assert set(told) == {variant.__name__ for variant in VARIANTS.values()}
    for tag, variant in VARIANTS.items():
        topic, fields = told[variant.__name__]
        named = [field.name for field in attrs.fields(variant) if field not in attrs.fields(IncidentEvent)]
        assert topic == f"``incidents.{tag.lower()}``"
        assert re.sub(r" \(.*\)", "", fields).split(", ") == named


def test_the_delivery_page_names_every_difference_of_the_conformance_table():
    table = (DOCS.parent / "tests" / "conformance" / "features.py").read_text()
    differences = set(re.findall(r"^    (\w+): Feature\b", table, re.MULTILINE))
    assert differences
    assert differences == {name for name in differences if f"``{name}``" in page("delivery")}


def test_the_api_page_has_every_public_name():
    directive = re.compile(r"^\.\. (?:auto\w+|py:data):: (?:incident_messaging\.)?(\w+)$", re.MULTILINE)
    told = set(directive.findall(page("api")))
    assert set(incident_messaging.__all__) <= told


def test_the_picture_takes_every_colour_from_the_theme():
    colours = re.findall(r"(?:fill|stroke): ([^;]+);", (DOCS / "_static" / "parts.svg").read_text())
    assert colours
    assert [colour for colour in colours if colour != "none" and not colour.startswith("var(--color-")] == []


def test_every_decision_that_is_cited_is_there_and_has_its_parts():
    source = DOCS.parent / "incident_messaging"
    code = "".join(file.read_text() for file in source.rglob("*.py"))
    cited = set(re.findall(r"docs/(decisions/[\w-]+\.rst)", code))
    there = {f"decisions/{file.name}" for file in (DOCS / "decisions").glob("0*.rst")}
    assert cited <= there
    for name in there:
        assert list(sections((DOCS / name).read_text())) == ["Context", "Decision", "Consequences"], name


def test_the_changelog_names_the_version_of_the_package():
    changelog = (DOCS.parent / "CHANGELOG.md").read_text()
    version = re.search(r"^version = (.+)$", (DOCS.parent / "setup.cfg").read_text(), re.MULTILINE)[1]
    assert f"## [{version}]" in changelog
