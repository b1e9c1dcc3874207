"""All but the text for a package index is said in setup.cfg: that text is README.md without what needs a checkout."""

import re
from pathlib import Path

from setuptools import setup

readme = (Path(__file__).parent / "README.md").read_text("utf-8")
readme = re.sub(r"<!-- checkout -->.*?<!-- /checkout -->\n+", "", readme, flags=re.DOTALL)
readme = re.sub(r"\[([^][]+)\]\(docs/[^)]+\)", r"\1", readme)  # an index does not follow links into the source

setup(long_description=readme)
