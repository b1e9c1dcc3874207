"""Ask whether versions in this environment are known to be vulnerable (docs/decisions/0014-asking-for-vulnerabilities).

    tox -e lint [-- --must-answer]

pip-audit asks the JSON interface of the package index. Where the index does not have it, pip-audit calls every package
"not found", finds "no known vulnerabilities" and ends with 0. Here a package about which nothing was said is not
audited, and an audit without any answer is none.

Exit code: 0 where all were audited and none is known to be vulnerable; 1 where one is; 2 where nobody answered for
some. Where nobody answered for any it is 0 and the output says so, or 2 with ``--must-answer``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_OWN = "incident-messaging"
_COMMAND = [sys.executable, "-m", "pip_audit", "--local", "--format", "json", "--progress-spinner", "off"]
_COMMAND += ["--vulnerability-service", "pypi", "--timeout", "15"]


def verdict(found: Mapping[str, Any], *, must_answer: bool) -> tuple[int, Sequence[str]]:
    """Exit code and lines for a report of pip-audit."""
    packages = [one for one in found.get("dependencies", ()) if one["name"] != _OWN]
    bad = [one for one in packages if one.get("vulns")]
    silent = [one["name"] for one in packages if "skip_reason" in one]
    if bad:
        return 1, [f"{one['name']} {one['version']}: {', '.join(vuln['id'] for vuln in one['vulns'])}" for one in bad]
    if len(silent) == len(packages):
        words = "NOT DONE: nobody here answers for any package; before a release, ask where one does"
        return (2 if must_answer else 0), [words]
    if silent:
        return 2, [f"INCOMPLETE: nothing is said about {', '.join(silent)}"]
    return 0, [f"{len(packages)} packages, none known to be vulnerable"]


def main() -> int:
    done = subprocess.run(_COMMAND, capture_output=True, text=True, timeout=600, check=False)
    try:
        found = json.loads(done.stdout)
    except ValueError:  # it could not connect, and says so on the other stream
        found = {}
    code, lines = verdict(found, must_answer="--must-answer" in sys.argv[1:])
    if not found:
        lines = [*lines, *done.stderr.strip().splitlines()[-1:]]
    sys.stdout.write("".join(f"audit: {line}\n" for line in lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
