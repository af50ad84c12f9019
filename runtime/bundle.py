"""The model bundle: networks and every parameter that belongs to them, in one folder or zip."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from runtime.bundle_checks import BUNDLE_JSON, check_spec
from runtime.bundle_json import MAY_BE_MISSING, MAY_BE_NULL, from_json, parse_json, to_json
from runtime.bundle_zip import discard_unpacked, unpack_zip
from runtime.crops import crop_grid
from runtime.errors import BundleError
from runtime.grading import GradingSpec
from runtime.precision_plan import PrecisionPlan
from runtime.volume import Grid

SCHEMA_VERSION = 1
DEFAULT_BUNDLE = Path(__file__).parent / "bundles" / "default"


@dataclass(frozen=True)
class IntensityWindow:
    """Hounsfield range that is mapped linearly to [0, 1]; values outside are clipped."""

    low_hu: float
    high_hu: float


@dataclass(frozen=True)
class ScoutSpec:
    """How a first look at low resolution saves most windows of the localisation network; see ``runtime.scout``.

    The values were measured for one network: another may see nothing at another resolution than its own.

    Args:
        spacing_mm: isotropic resolution of the first look, by the same network in windows of the same voxels.
        overlap: fraction of a window shared with its neighbour in the first look, 0 to below 1.
        threshold: heat of the first look above which full resolution begins, 0..1.
        margin_mm: and so far around it.
        follow_threshold: heat at full resolution that is followed to further windows; below ``heatmap_threshold``.
        share: windows are run that would have more than this share of the blend where such heat is, judged at the
            middle of a cell of 4 x 4 x 4 voxels.
    """

    spacing_mm: float
    overlap: float
    threshold: float
    margin_mm: float
    follow_threshold: float
    share: float


@dataclass(frozen=True)
class LocNetSpec:
    """How to run the localisation network and read its outputs.

    Input ``image`` (n, 1, z, y, x) on a grid with axes along RAS+; outputs ``heatmap`` (n, 1, z, y, x) in 0..1 and, for
    variant ``"F"``, ``offsets`` (n, 3, z, y, x): voxels, in z, y, x order, from each voxel to its nearest centre.

    Args:
        file: ONNX file name in the bundle.
        variant: ``"F"`` (votes) or ``"H"`` (peaks of the heatmap itself).
        spacing_mm: isotropic working resolution.
        window_zyx: sliding window, voxels.
        overlap: fraction of a window shared with its neighbour, 0 to below 1.
        intensity: normalisation.
        heatmap_threshold: H_t.
        peak_threshold: eta.
        peak_separation_voxels: lambda.
        refine_radius_voxels: radius of the vote-weighted mean that refines a peak; 0 for the bare peak.
        min_confidence: peaks of lower confidence are dropped.
        skip_below_hu: windows without any voxel above it are not run, since they can't hold bone.
        scout: how windows away from the spine are saved; None, as in a ``bundle.json`` without this key, to run all.
    """

    file: str
    variant: str
    spacing_mm: float
    window_zyx: tuple[int, int, int]
    overlap: float
    intensity: IntensityWindow
    heatmap_threshold: float
    peak_threshold: float
    peak_separation_voxels: float
    refine_radius_voxels: float
    min_confidence: float
    skip_below_hu: float
    scout: ScoutSpec | None = field(default=None, metadata=MAY_BE_NULL)


@dataclass(frozen=True)
class FracSegNetSpec:
    """How to run the network that segments and grades one vertebra in a crop around its centre.

    Input ``image`` (n, 1, z, y, x) on a RAS+ grid around the vertebra. Outputs ``mask`` (n, k, z, y, x)
    probabilities, ``grade`` (n, len(grade_names)) probabilities, and where ``has_heights`` also ``heights`` (n, 6):
    anterior, middle and posterior height in mm, then their relative losses (0..1).

    Args:
        file: ONNX file name in the bundle.
        spacing_mm: isotropic crop resolution.
        crop_zyx: crop, voxels.
        crop_shift_mm: (x, y, z) RAS, from the vertebra's centre to the crop's middle; none in a ``bundle.json`` without
            this key.
        mirrored: whether the outputs are the mean of the crop's and its mirror image's, which is twice the work; not so
            in a ``bundle.json`` without this key.
        interleaved: whether the mirror image's crop lies half a voxel off and the masks come on a grid twice as fine;
            not so in a ``bundle.json`` without this key.
        intensity: normalisation.
        mask_channels: what each mask channel means: ``"vertebra"`` first, then ``"body"`` if the network separates it.
        mask_threshold: probability from which a voxel belongs to the mask.
        grade_names: meaning of the grade outputs.
        has_heights: whether the third output exists.
    """

    file: str
    spacing_mm: float
    crop_zyx: tuple[int, int, int]
    intensity: IntensityWindow
    mask_channels: tuple[str, ...]
    mask_threshold: float
    grade_names: tuple[str, ...]
    has_heights: bool
    crop_shift_mm: tuple[float, float, float] = field(default=(0.0, 0.0, 0.0), metadata=MAY_BE_MISSING)
    mirrored: bool = field(default=False, metadata=MAY_BE_MISSING)
    interleaved: bool = field(default=False, metadata=MAY_BE_MISSING)

    def grid_around(self, centre_ras_mm: npt.ArrayLike) -> Grid:
        """Where the network's input lies for a vertebra whose centre is at (x, y, z) RAS+ mm."""
        return crop_grid(
            centre_ras_mm, spacing_mm=self.spacing_mm, shape_zyx=self.crop_zyx, shift_ras_mm=self.crop_shift_mm
        )


@dataclass(frozen=True)
class LevelNetSpec:
    """How to run the network that tells the anatomical level of one vertebra, or that it is none.

    Input ``image`` (n, 1, z, y, x) on a RAS+ grid centred on the vertebra, to half a voxel. Output ``level`` (n, 27)
    probabilities.

    Args:
        file: ONNX file name in the bundle.
        spacing_mm: isotropic crop resolution.
        crop_zyx: crop, voxels; wide enough to show what a person would count from.
        intensity: normalisation.
        level_names: what the outputs mean: ``runtime.anatomy.LEVEL_NAMES``.
        min_confidence: levels must be more probable than this to be told, after the decoding along the spine.
    """

    file: str
    spacing_mm: float
    crop_zyx: tuple[int, int, int]
    intensity: IntensityWindow
    level_names: tuple[str, ...]
    min_confidence: float


@dataclass(frozen=True)
class BundleSpec:
    """The content of ``bundle.json``.

    Args:
        name: such as ``"default"``.
        version: of the bundle.
        locnet: first network.
        fracsegnet: second network.
        files: SHA-256 hex digest of every other file in the bundle.
        training: provenance: data, presets, code version, steps, durations.
        accuracy: measured figures and the command that made them.
        licence: SPDX name.
        intended_use: shown to users.
        clinical: False for bundles that must not be used on patients; the table, picture and findings say so.
        levelnet: third network, or None; a ``bundle.json`` without this key is read as one without it.
        precision: for each network file that was calibrated, how it may be computed in fewer bits; empty, as in a
            ``bundle.json`` without this key, where none was.
        verified: the precisions, fp16 or bf16, in which ``export.verify --record`` found that all networks say what
            torch says, over whole scans, each with the worst figures of every engine: a processor that has one of them
            computes in it where nothing else is asked for. Empty, as in a ``bundle.json`` without this key, where that
            wasn't done.
        grading: how the network's grades and heights go together with the measured ones; None, as in a ``bundle.json``
            without this key, where that was not fitted: then the network's alone are reported.
        trusted_engines: SHA-256 of prebuilt engines that may be loaded, by name; empty, as in a ``bundle.json`` without
            this key, for none.
    """

    name: str
    version: str
    locnet: LocNetSpec
    fracsegnet: FracSegNetSpec
    files: Mapping[str, str]
    licence: str
    intended_use: str
    clinical: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    levelnet: LevelNetSpec | None = field(default=None, metadata=MAY_BE_NULL)
    precision: Mapping[str, PrecisionPlan] = field(default_factory=dict, metadata=MAY_BE_NULL)
    grading: GradingSpec | None = field(default=None, metadata=MAY_BE_NULL)
    verified: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict, metadata=MAY_BE_NULL)
    trusted_engines: Mapping[str, str] = field(default_factory=dict, metadata=MAY_BE_NULL)
    schema_version: int = SCHEMA_VERSION

    @property
    def networks(self) -> tuple[LocNetSpec | FracSegNetSpec | LevelNetSpec, ...]:
        """The networks that there are."""
        known = (self.locnet, self.fracsegnet, self.levelnet)
        return tuple(network for network in known if network is not None)

    def why_not_in(self, precision: str) -> str:
        """Why these networks are not to be computed in a precision, or the empty text: INT8 needs its gate passed."""
        if precision != "int8":
            return ""
        plans = {network.file: self.precision.get(network.file, PrecisionPlan()) for network in self.networks}
        return "; ".join(f"{file}: {plan.why_no_int8}" for file, plan in plans.items() if plan.why_no_int8)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose every file was found to be the one that its ``bundle.json`` names.

    Args:
        spec: content of its ``bundle.json``.
        folder: where its files lie.
        sha256: hex digest of its ``bundle.json``.
    """

    spec: BundleSpec
    folder: Path
    sha256: str

    def path_of(self, file: str) -> Path:
        """The path of one of the bundle's files.

        Raises:
            BundleError: the bundle has no such file.
        """
        if file not in self.spec.files:
            raise BundleError(f"The bundle in {self.folder} has no {file}; it has {', '.join(self.spec.files)}.")
        return self.folder / file


def open_bundle(path: str | Path | None = None) -> Bundle:
    """Open a bundle and verify every file in it.

    Args:
        path: a bundle's folder, or one zip of such a folder, which is unpacked into the user's cache; None for the
            default bundle inside this package.

    Raises:
        BundleError: it is missing, not as the schema says, or a file's SHA-256 is not the one in ``bundle.json``.
    """
    if path is None:
        if not (DEFAULT_BUNDLE / BUNDLE_JSON).is_file():
            raise BundleError(
                f"This installation has no default bundle ({DEFAULT_BUNDLE}). Make it with `make bundle`, "
                "or name a bundle with --bundle."
            )
        return _open_folder(DEFAULT_BUNDLE)
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise BundleError(f"There is no bundle at {path}.")
    folder, is_fresh = unpack_zip(path)
    try:
        return _open_folder(folder)
    except BundleError:
        if is_fresh:
            raise
    # What an earlier run unpacked was damaged since: the zip itself decides.
    discard_unpacked(path)
    return _open_folder(unpack_zip(path)[0])


def write_bundle(spec: BundleSpec, files: Mapping[str, Path], folder: Path) -> Bundle:
    """Write a bundle: whole, or not at all.

    Args:
        spec: what to write; its ``files`` are ignored and replaced by the digests of ``files``.
        files: name in the bundle to the file to copy; the networks that ``spec`` names must be among them.
        folder: where to put it. A bundle that is there is replaced; any other folder that isn't empty is refused.

    Returns:
        The bundle as written, read back and verified.

    Raises:
        BundleError: the spec is not sound, a file is missing, or the folder holds something else.
    """
    folder = Path(folder)
    check_replaceable(folder)
    missing = [str(path) for path in files.values() if not Path(path).is_file()]
    if missing:
        raise BundleError(f"Files for the bundle are missing: {', '.join(missing)}.")
    spec = replace(spec, files={name: sha256_of(path) for name, path in files.items()})
    check_spec(spec)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        for name, path in files.items():
            shutil.copyfile(path, fresh / name)
        (fresh / BUNDLE_JSON).write_text(to_json(spec), encoding="utf-8", newline="\n")
        _open_folder(fresh)
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        fresh.rename(folder)
    return _open_folder(folder)


def check_replaceable(folder: Path) -> None:
    """Raises BundleError where the folder holds something else than a bundle, which none may take the place of."""
    if folder.exists() and not (folder / BUNDLE_JSON).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists and is no bundle; name an empty or new folder.")


def sha256_of(path: Path) -> str:
    """Hex SHA-256 digest of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_spec(folder: Path) -> BundleSpec:
    """The content of a bundle's ``bundle.json``; its files are not looked at.

    Raises:
        BundleError: it can't be read or is not as the schema says.
    """
    return _spec_of(_read_json(folder), source=str(folder / BUNDLE_JSON))


def _open_folder(folder: Path) -> Bundle:
    text = _read_json(folder)
    spec = _spec_of(text, source=str(folder / BUNDLE_JSON))
    for name, expected in spec.files.items():
        _verify(folder / name, expected)
    return Bundle(spec, folder.resolve(), hashlib.sha256(text.encode()).hexdigest())


def _read_json(folder: Path) -> str:
    path = folder / BUNDLE_JSON
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise BundleError(f"{folder} is no bundle: its {BUNDLE_JSON} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not UTF-8 text.") from error


def _spec_of(text: str, *, source: str) -> BundleSpec:
    data = parse_json(text, source=source)
    # The version first: a bundle of another schema differs in its keys, and saying so helps more than naming them.
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version is not None and (version != SCHEMA_VERSION or isinstance(version, bool)):
        raise BundleError(
            f"{source} has schema_version {version!r}; this software reads {SCHEMA_VERSION}. "
            "Use a bundle made for this version."
        )
    spec = from_json(BundleSpec, data, at=source)
    check_spec(spec, source=source)
    return spec


def _verify(path: Path, expected: str) -> None:
    try:
        met = sha256_of(path)
    except OSError as error:
        raise BundleError(f"The bundle's file {path} cannot be read ({error.strerror}).") from error
    if met != expected:
        raise BundleError(
            f"{path} is not the file its bundle was made with: expected SHA-256 {expected}, met {met}. "
            "It is damaged or was changed; get the bundle again."
        )
