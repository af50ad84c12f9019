"""``python -m runtime.node`` and ``vertscan-node``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from runtime.extras import stop_interrupted, stop_without


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; where its packages are not installed, say which extra has them."""
    try:
        from runtime.node.commands import main as run
    except ModuleNotFoundError as error:
        stop_without("node", error)
    except KeyboardInterrupt:
        stop_interrupted()
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
