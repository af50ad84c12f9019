"""What only a cohort can meet."""

from __future__ import annotations

from runtime.errors import VertscanError


class ClusterError(VertscanError):
    """Workers of the cluster died, or can't be started."""

    exit_status = 5
