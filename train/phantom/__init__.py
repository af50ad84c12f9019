"""Procedural CT phantoms of the torso with known vertebrae: analytic geometry rendered on any grid."""

from train.phantom.anatomy import Anatomy, sample_anatomy
from train.phantom.appearance import Appearance, sample_appearance
from train.phantom.config import PhantomConfig
from train.phantom.fields import random_scan_grid
from train.phantom.render import PhantomScan, PhantomVertebra, make_scan, render
from train.phantom.verse import write_verse

__all__ = [
    "Anatomy",
    "Appearance",
    "PhantomConfig",
    "PhantomScan",
    "PhantomVertebra",
    "make_scan",
    "random_scan_grid",
    "render",
    "sample_anatomy",
    "sample_appearance",
    "write_verse",
]
