"""The package openvino without its telemetry."""

from __future__ import annotations

import sys

_SENDER = "openvino_telemetry"


def refuse_telemetry() -> None:
    """Keep the library from sending events; to be called before it is imported.

    It installs the package ``openvino_telemetry`` along with itself. Where that can be imported, each import of the
    library writes an identifier into the user's home and sends it to Google Analytics, from a forked process that lives
    on where the network hangs. Where it can't, the library goes on without. Who has imported it before keeps it.
    """
    sys.modules.setdefault(_SENDER, None)  # type: ignore[arg-type]  # so Python says that there is none
