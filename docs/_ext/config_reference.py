"""The directive ``config-reference``: ``.. config-reference:: KafkaConfig`` is a table of its fields."""

from __future__ import annotations

from config_rows import table
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from incident_messaging import config


class ConfigReference(SphinxDirective):
    """The table of a class of `incident_messaging.config`, parsed as if it stood in the page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse the table."""
        source, _ = self.get_source_info()
        lines = StringList(list(table(getattr(config, self.arguments[0]))), source=source)
        parsed = nodes.Element()
        self.state.nested_parse(lines, 0, parsed)
        return parsed.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("config-reference", ConfigReference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
