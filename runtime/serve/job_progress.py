"""What the pipeline tells of a job that runs, as a fraction of the whole; and how it is made to stop."""

from __future__ import annotations

from collections.abc import Callable

from runtime.serve.models import Progress

SHARES = {
    "read": 0.08,
    "resample": 0.04,
    "locate": 0.38,
    "label": 0.12,
    "segment": 0.28,
    "measure": 0.03,
    "paste": 0.02,
    "overview": 0.03,
    "dicom": 0.01,
    "write": 0.01,
}
"""About how much of the time each stage takes, in their order."""


class StoppedError(Exception):
    """The job is to stop; raised through the pipeline, which leaves nothing behind."""


class JobProgress:
    """Tells of a job's progress, which never goes back.

    Args:
        tell: is given what there is to tell, and says whether the job may go on.
    """

    def __init__(self, tell: Callable[[Progress], bool]) -> None:
        self._tell, self._now = tell, Progress()

    def stage(self, name: str) -> None:
        """A stage begins. Raises StoppedError when the job is to stop."""
        self._say(Progress(stage=name, fraction=self._fraction(name, 0.0)))

    def step(self, done: int, total: int) -> None:
        """``done`` of ``total`` of this stage are through. Raises StoppedError when the job is to stop."""
        stage = self._now.stage
        part = done / total if total > 0 else 1.0
        self._say(Progress(stage=stage, done=done, total=total, fraction=self._fraction(stage, part)))

    def finish(self) -> None:
        """Nothing: whoever runs the job tells how it ended."""

    def _fraction(self, stage: str | None, part: float) -> float:
        """Of the whole job; where a stage is not known, as far as it was."""
        if stage not in SHARES:
            return self._now.fraction
        names = list(SHARES)
        before = sum(SHARES[name] for name in names[: names.index(stage)])
        return max(self._now.fraction, min(1.0, before + SHARES[stage] * min(1.0, part)))

    def _say(self, progress: Progress) -> None:
        self._now = progress
        if not self._tell(progress):
            raise StoppedError
