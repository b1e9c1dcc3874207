"""The command ``incident-messaging``; it needs the extra ``cli`` (click, rich), and says so without."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command; its exit code is 0 only if all went well."""
    try:
        from incident_messaging.commands import commands

        commands()
    except ModuleNotFoundError as missing:
        package = str(missing.name).partition(".")[0]
        if package not in ("click", "rich"):
            raise
        sys.exit(f"incident-messaging needs {package}; get it by: pip install 'incident-messaging[cli]'")


if __name__ == "__main__":
    main()
