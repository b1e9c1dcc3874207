"""How the documentation is built: ``python -m sphinx -n -W -b html docs docs/_build/html``."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import incident_messaging

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "incident-messaging"
copyright = "the incident-messaging authors"
release = version = version("incident-messaging")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "config_reference"]
exclude_patterns = ["_build", "_ext", "examples"]
html_theme = "furo"
html_title = f"{project} {release}"

# A name in single backticks, here and in docstrings, is a name of the package, and must exist.
default_role = "py:obj"
add_module_names = False
maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Names outside the package are not looked up: the build needs no network. Type variables have no page.
nitpick_ignore_regex = [
    (r"py:class", r"incident_messaging\.consuming\.(options\.\w+Options|letters\.Choice)"),
    (r"py:obj", r"open|jump"),
    (r"py:.*", r"(?!incident_messaging\b)\w+(\.\w+)+"),
    (r"py:.*", r"([TUFM]|.*\.[TUFM])"),
]


#: Made by the SDK, or too many fields to be read as a signature; `configuration` has those.
_WITHOUT_SIGNATURE = {
    *("Subscription", "Delivery"),
    *("MessagingConfig", "NatsConfig", "KafkaConfig", "RetryPolicy"),
}


def _public(target: str) -> str | None:
    """``NatsConfig`` or ``incident_messaging.config.nats.NatsConfig`` as the API's page names it."""
    parts = target.split(".")
    place = next((number for number, part in enumerate(parts) if part in incident_messaging.__all__), None)
    return None if place is None else ".".join(["incident_messaging", *parts[place:]])


def _resolve(_app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Any) -> Element | None:
    """Find a public name that is called by the module in which it is written, or by itself elsewhere."""
    public = _public(node.get("reftarget", ""))
    if public is None or public == node["reftarget"]:
        return None
    domain = env.domains.python_domain
    return domain.resolve_xref(env, node["refdoc"], env._app.builder, "obj", public, node, content)


def _signature(_app: Sphinx, _what: str, name: str, *_more: Any) -> tuple[str, str] | None:
    return ("", "") if name.removeprefix("incident_messaging.") in _WITHOUT_SIGNATURE else None


def _property(_app: Sphinx, what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Keep napoleon from reading a property's first words as its type where a colon follows them."""
    if what == "property":
        lines.insert(0, "\\ ")


def setup(app: Sphinx) -> None:
    """Connect what this file adds."""
    app.connect("autodoc-process-docstring", _property, priority=400)
    app.connect("missing-reference", _resolve)
    app.connect("autodoc-process-signature", _signature)
