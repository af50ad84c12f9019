"""``python -m runtime.engines``: which engines this machine has, and which would be chosen."""

from __future__ import annotations

import sys

from runtime.engines import preflights, select_engine
from runtime.errors import EngineError


def main() -> int:
    """Print every engine's preflight and the choice; 0 when some engine can run, else the engine error's status."""
    for name, found in preflights().items():
        sys.stdout.write(f"{name:12} {'yes' if found.available else 'no':4} {found.reason}\n")
    try:
        choice = select_engine()
    except EngineError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    sys.stdout.write(f"auto -> {choice.name} in {choice.precision}: {choice.reason}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
