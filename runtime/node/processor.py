"""What is done with a complete study: the one module that knows the pipeline and the writer of DICOM results."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from runtime.errors import InputError
from runtime.memory import keep_freed_memory
from runtime.node.config import Analyse

if TYPE_CHECKING:
    from runtime.pipeline import Pipeline

logger = logging.getLogger(__name__)

SECONDS = "seconds: "
"""How the line begins that says what each stage of a study took."""


class Processor(Protocol):
    """Analyses studies; open for as long as the node runs, used from one thread at a time."""

    @property
    def engine(self) -> str:
        """What runs the networks, for people."""
        ...

    def __call__(self, series_files: Sequence[Path], out_dir: Path) -> Sequence[Path]:
        """Analyse the images of one study, all series, and write DICOM objects into an empty folder.

        The same images must give objects with the same SOP Instance UIDs.

        Returns:
            The paths of the objects.

        Raises:
            InputError: these images can't be analysed, and to try again would change nothing.
            VertscanError: it failed now.
        """
        ...

    def rest(self) -> None:
        """Give back the memory that isn't needed until the next study."""
        ...


Opener = Callable[[Analyse], AbstractContextManager[Processor]]


class PipelineProcessor:
    """The real processor: one warm pipeline, and DICOM results of the kinds that were asked for."""

    def __init__(self, pipeline: Pipeline, outputs: Sequence[str]) -> None:
        self._pipeline, self._outputs = pipeline, outputs

    @property
    def engine(self) -> str:
        """Engine, version, precision and device."""
        info = self._pipeline.engine_info
        return f"{info.name} {info.version}, {info.precision}, {info.device}"

    def __call__(self, series_files: Sequence[Path], out_dir: Path) -> Sequence[Path]:
        """Read the best series of the study, analyse it, write the results; see ``Processor``."""
        from runtime.dicom.writer import write_dicom

        with tempfile.TemporaryDirectory(prefix="vertscan-") as scratch:
            folder = Path(scratch) / "study"  # named in messages
            folder.mkdir()
            for number, path in enumerate(series_files):
                (folder / f"{number:06d}.dcm").symlink_to(path.absolute())
            try:
                analysis = self._pipeline.analyse(folder)
            except InputError as error:
                for reason in getattr(error, "__notes__", ()):  # of every series of the study
                    logger.info("%s", reason)
                raise
            for warning in analysis.findings.warnings:
                logger.info("%s", warning)
            start_s = time.perf_counter()
            write_dicom(analysis, out_dir, self._outputs)
            seconds = {**analysis.findings.timings_s, "objects": time.perf_counter() - start_s}
            del seconds["total"]
            logger.info("%s%s", SECONDS, ", ".join(f"{stage} {took_s:.2f}" for stage, took_s in seconds.items()))
        return sorted(out_dir.iterdir())

    def rest(self) -> None:
        """See ``Processor``."""
        self._pipeline.rest()


@contextmanager
def open_pipeline(settings: Analyse) -> Iterator[PipelineProcessor]:
    """Load the networks once, for as long as the node runs.

    Raises:
        InputError: packages that the outputs need are missing.
        BundleError, EngineError: the bundle or the engine can't be used.
    """
    from runtime.dicom import check_installed
    from runtime.pipeline import Pipeline
    from runtime.warm_up import warm_up

    check_installed(settings.outputs)
    from runtime.dicom.rehearsal import rehearse

    keep_freed_memory()  # until the processor rests

    with Pipeline.open(
        settings.bundle,
        engine=settings.engine,
        precision=settings.precision,
        device=settings.device,
        exhaustive=settings.exhaustive,
    ) as pipeline:
        warm_up(pipeline)
        try:
            rehearse(settings.outputs)
        except OSError as error:
            logger.warning("no rehearsal, so the first study takes longer: %s", error.strerror)
        pipeline.rest()
        yield PipelineProcessor(pipeline, settings.outputs)
