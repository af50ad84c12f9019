"""The thesis's own figures (VertFault, Edinburgh 2024, chapter 4; VerSe 2019's test set), to stand beside ours.

Its localisation errors are distances from each predicted centre to the nearest true one, on one random crop of 128 mm
of each image; a vertebra that was missed is not counted in them. Ours of the same kind are ``nearest_mm``, on whole
scans.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorFigure:
    """Mean and standard deviation, mm."""

    mean_mm: float
    sd_mm: float


@dataclass(frozen=True)
class LocalisationErrors:
    """Localisation errors by region."""

    cervical: ErrorFigure
    thoracic: ErrorFigure
    lumbar: ErrorFigure
    overall: ErrorFigure


LOCNET_H = LocalisationErrors(
    ErrorFigure(1.19, 0.5), ErrorFigure(3.61, 8.2), ErrorFigure(6.06, 14.6), ErrorFigure(4.27, 10.9)
)
LOCNET_F = LocalisationErrors(
    ErrorFigure(2.58, 2.1), ErrorFigure(3.78, 6.2), ErrorFigure(3.09, 5.4), ErrorFigure(3.39, 5.6)
)
MASK_DICE = (0.90, 0.91, 0.91, 0.87)
"""FracSegNet with unweighted cross entropy, grades 0..3."""
GRADE_F1 = (0.88, 0.09, 0.35, 0.00)
"""FracSegNet with unweighted cross entropy, grades 0..3."""
