"""``python -m runtime.serve``."""

from __future__ import annotations

import sys

from runtime.extras import stop_interrupted, stop_without

if __name__ == "__main__":
    try:
        from runtime.serve.commands import main
    except ModuleNotFoundError as error:
        stop_without("serve", error)
    except KeyboardInterrupt:
        stop_interrupted()
    sys.exit(main())
