"""The incident console for everybody: by keyboard, by screen reader, on a phone, in the dark."""

from __future__ import annotations

from itertools import pairwise

import pytest
from scene import play
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

#: Roles of what somebody operates, and so must be able to name.
CONTROLS = {"button", "textbox", "combobox", "link", "option"}
PHONE = (360, 740)
LONG = "a long title " * 8 + "with-a-word-that-is-wider-than-any-phone-" * 2

#: The contrast of every text on the page with what is behind it, as WCAG counts it.
CONTRASTS = """
const channels = (text) => text.match(/[\\d.]+/g).map(Number);
const linear = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
function ground(element) {
  for (let at = element; at; at = at.parentElement) {
    const colour = channels(getComputedStyle(at).backgroundColor);
    if (colour.length === 3 || colour[3] > 0) return colour;
  }
}
const found = [];
for (const element of document.body.querySelectorAll("*")) {
  const hasText = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  if (!hasText || !element.checkVisibility()) continue;
  const colours = [channels(getComputedStyle(element).color), ground(element)];
  const [dim, bright] = colours.map(light).sort((a, b) => a - b);
  found.push([`${element.tagName}#${element.id}.${element.className}`, (bright + 0.05) / (dim + 0.05)]);
}
return found;
"""


@pytest.fixture
def on_nats(nats_server, environment):
    environment["INCIDENT_MESSAGING_NATS__SERVERS"] = nats_server.url


@pytest.fixture
def afternoon(on_nats, start, elsewhere, one):
    """A window with incidents of every severity, one of them resolved, and dead letters."""
    play(elsewhere)
    elsewhere.publish_incident_created("INC-LONG", "high", "a-type-that-is-as-wide-" * 4, LONG)
    one.open(start().url)
    one.sees(5, lambda: len(one.listed()))
    one.sees("2", lambda: one.text("#dead-count"))
    return one


@pytest.fixture
def phone(one):
    one.shape(*PHONE)
    yield
    one.shape()


@pytest.fixture
def colours(one):
    def choose(scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}] if scheme else []
        one.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    yield choose
    choose("")


@pytest.mark.usefixtures("phone")
def test_on_a_phone_nothing_is_wider_than_the_screen(afternoon):
    assert afternoon.driver.execute_script("return [innerWidth, innerHeight]") == list(PHONE)
    wider = afternoon.driver.execute_script(
        "return [...document.body.querySelectorAll('*')]"
        ".filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 0.5)"
        ".map((e) => e.outerHTML.slice(0, 200))"
    )
    assert wider == []
    assert afternoon.driver.execute_script("return document.documentElement.scrollWidth") <= PHONE[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(afternoon, colours, scheme):
    colours(scheme)
    contrasts = afternoon.driver.execute_script(CONTRASTS)

    assert len(contrasts) > 50
    assert [(name, ratio) for name, ratio in contrasts if ratio < 4.5] == []


def test_light_and_dark_differ(afternoon, colours):
    def ground() -> str:
        return afternoon.driver.execute_script("return getComputedStyle(document.body).backgroundColor")

    colours("light")
    light = ground()
    colours("dark")
    assert ground() != light


def test_every_control_has_a_name_of_its_own(afternoon):
    tree = afternoon.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = [node for node in tree if not node["ignored"] and node["role"]["value"] in CONTROLS]
    names = [node["name"]["value"] for node in controls]

    assert len(names) > 20
    assert all(names), "a screen reader would say nothing but the role"
    assert len(set(names)) == len(names), "a screen reader would say the same of two controls"
    assert {"Title", "Severity", "Type", "Open incident", "Escalate INC-52B90E7F"} <= set(names)


def test_the_page_has_a_structure_and_says_what_changes(afternoon):
    levels = afternoon.driver.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3')]"
        ".filter((heading) => heading.checkVisibility()).map((heading) => +heading.tagName[1])"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert afternoon.find("html").get_attribute("lang") == "en"
    assert afternoon.find("#status").aria_role == "status"
    assert afternoon.find("#error").aria_role == "alert"
    assert afternoon.find("#news").get_attribute("aria-live") == "polite"

    afternoon.click("Primary database does not accept writes", "Escalate")

    afternoon.sees(
        "INC-52B90E7F Primary database does not accept writes: open, level 3, assigned to on-call database",
        lambda: afternoon.find("#news").get_attribute("textContent"),
    )


@pytest.mark.usefixtures("on_nats")
def test_an_incident_is_opened_and_resolved_by_keyboard(start, one):
    def press(*keys: str) -> None:
        ActionChains(one.driver).send_keys(*keys).perform()

    def focused() -> str:
        return one.driver.execute_script(
            "return document.activeElement.getAttribute('aria-label') ?? document.activeElement.id"
        )

    one.open(start().url)
    press(Keys.TAB, Keys.ENTER)  # the link that skips to the form
    press(Keys.TAB, "the lights are out", Keys.TAB, "c", Keys.TAB, Keys.TAB, Keys.ENTER)
    one.sees(["the lights are out"], one.listed)
    assert one.card("the lights are out").get_attribute("data-severity") == "critical"
    one.sees("title", focused)  # ready for the next one
    incident_id = one.card("the lights are out").get_attribute("data-id")

    one.driver.execute_script("arguments[0].focus()", one.card("the lights are out"))
    press(Keys.TAB)
    assert focused() == f"Escalate {incident_id}"
    press(Keys.SPACE)
    one.sees(lambda facts: "level 1" in facts, lambda: one.facts("the lights are out"))
    assert focused() == f"Escalate {incident_id}", "what comes live takes nobody's focus"
    press(Keys.TAB)
    assert focused() == f"Resolve {incident_id}"
    press(Keys.ENTER)

    one.sees(["the lights are out"], lambda: one.listed("resolved"))
    one.sees(incident_id, lambda: one.driver.execute_script("return document.activeElement.dataset.id"))


def test_a_title_is_text_whatever_it_says(afternoon, elsewhere):
    title = "<img src=x onerror=\"document.title='owned'\"> & </script>"
    elsewhere.publish_incident_created("INC-HTML", "low", "<b>type</b>", title)

    afternoon.sees(lambda listed: title in listed, afternoon.listed)
    assert afternoon.driver.title == "Incident console"
