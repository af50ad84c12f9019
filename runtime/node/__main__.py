"""``python -m runtime.node``."""

from __future__ import annotations

import sys

from runtime.extras import stop_without

if __name__ == "__main__":
    try:
        from runtime.node.commands import main
    except ModuleNotFoundError as error:
        stop_without("node", error)
    sys.exit(main())
