import copy
import hashlib
import json
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import runtime.bundle as bundle_module
import runtime.bundle_zip as bundle_zip
from runtime.anatomy import LEVEL_NAMES
from runtime.bundle import (
    BundleSpec,
    FracSegNetSpec,
    IntensityWindow,
    LevelNetSpec,
    LocNetSpec,
    ScoutSpec,
    open_bundle,
    sha256_of,
    write_bundle,
)
from runtime.cache import user_cache_folder
from runtime.errors import BundleError
from runtime.grading import GradingSpec

SPEC = BundleSpec(
    name="test",
    version="1.0",
    locnet=LocNetSpec(
        file="locnet.onnx",
        variant="F",
        spacing_mm=2.0,
        window_zyx=(96, 96, 96),
        overlap=0.25,
        intensity=IntensityWindow(-1000.0, 1000.0),
        heatmap_threshold=0.7,
        peak_threshold=0.1,
        peak_separation_voxels=5.0,
        refine_radius_voxels=3.0,
        min_confidence=0.5,
        skip_below_hu=100.0,
    ),
    fracsegnet=FracSegNetSpec(
        file="fracsegnet.onnx",
        spacing_mm=1.0,
        crop_zyx=(96, 96, 96),
        intensity=IntensityWindow(-200.0, 1200.0),
        mask_channels=("vertebra", "body"),
        mask_threshold=0.5,
        grade_names=("0", "1", "2", "3"),
        has_heights=True,
    ),
    files={},
    licence="Apache-2.0",
    intended_use="Tests; 試験.",
    training={"steps": 10, "rates": [0.1, 0.2], "note": None},
    accuracy={},
)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """What is unpacked goes to the test's own folder."""
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    return user_cache_folder("bundles")


@pytest.fixture
def files(tmp_path):
    sources = {"locnet.onnx": tmp_path / "a.onnx", "fracsegnet.onnx": tmp_path / "b.onnx"}
    for name, path in sources.items():
        path.write_bytes(name.encode() * 1000)
    return sources


@pytest.fixture
def folder(files, tmp_path):
    return write_bundle(SPEC, files, tmp_path / "bundle").folder


def rewrite(folder, change):
    """Apply ``change`` to the folder's bundle.json as Python values."""
    path = folder / "bundle.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


# Keys that older bundles lack.


def test_engines_that_are_trusted_are_listed_by_their_hash_and_older_bundles_list_none(files, tmp_path):
    digests = {"locnet-fp16.engine": "ab" * 32}
    assert write_bundle(replace(SPEC, trusted_engines=digests), files, tmp_path / "b").spec.trusted_engines == digests
    for change in (lambda data: data.pop("trusted_engines"), lambda data: data.update(trusted_engines=None)):
        rewrite(tmp_path / "b", change)
        assert open_bundle(tmp_path / "b").spec.trusted_engines == {}
    for wrong, said in (
        ([], "trusted_engines should be an object"),
        ({"x": 3}, r"trusted_engines\[x\] should be a text"),
        ({"x": "AB" * 32}, "the SHA-256 of the engine x should be 64 lower-case hex digits"),
    ):
        rewrite(tmp_path / "b", lambda data, wrong=wrong: data.update(trusted_engines=wrong))
        with pytest.raises(BundleError, match=said):
            open_bundle(tmp_path / "b")


def test_precisions_that_were_verified_are_listed_and_older_bundles_list_none(files, tmp_path):
    verified = {"bf16": {"openvino 1": {"scans": 54.0, "dice": 0.999}}}
    assert write_bundle(replace(SPEC, verified=verified), files, tmp_path / "b").spec.verified == verified
    for change in (lambda data: data.pop("verified"), lambda data: data.update(verified=None)):
        rewrite(tmp_path / "b", change)
        assert open_bundle(tmp_path / "b").spec.verified == {}
    for wrong, said in (
        (["bf16"], "verified should be an object"),
        ({"bf16": {"openvino 1": 0.999}}, r"verified\[bf16\]\[openvino 1\] should be an object"),
        ({"int8": {}}, "verified should name no precisions but fp16 and bf16, met 'int8'"),
    ):
        rewrite(tmp_path / "b", lambda data, wrong=wrong: data.update(verified=wrong))
        with pytest.raises(BundleError, match=said):
            open_bundle(tmp_path / "b")


@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0), (0.0, -18.0, -4.0)])
def test_a_crops_shift_is_kept_and_older_bundles_have_none(files, tmp_path, shift):
    spec = replace(SPEC, fracsegnet=replace(SPEC.fracsegnet, crop_shift_mm=shift))
    assert write_bundle(spec, files, tmp_path / "b").spec.fracsegnet.crop_shift_mm == shift
    rewrite(tmp_path / "b", lambda data: data["fracsegnet"].pop("crop_shift_mm"))
    older = open_bundle(tmp_path / "b").spec.fracsegnet
    assert older.crop_shift_mm == (0.0, 0.0, 0.0)
    middle, point = (np.array(older.crop_zyx) - 1) / 2, (1.0, 2.0, 3.0)
    assert older.grid_around(point).to_ras_mm(middle) == pytest.approx(point)
    assert spec.fracsegnet.grid_around(point).to_ras_mm(middle) == pytest.approx(np.add(point, shift))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([0.0, 1.0], "should hold 3 values"),
        ("back", "should be a list"),
        ([0.0, "back", 0.0], "should be a number"),
        (None, "should be a list"),
    ],
)
def test_a_shift_that_is_none_is_refused(folder, wrong, said):
    rewrite(folder, lambda data: data["fracsegnet"].update(crop_shift_mm=wrong))
    with pytest.raises(BundleError, match=f"crop_shift_mm.* {said}"):
        open_bundle(folder)


# Writing and reading back.


def test_what_is_written_is_read_back(files, tmp_path):
    written = write_bundle(SPEC, files, tmp_path / "deep" / "bundle")
    read = open_bundle(tmp_path / "deep" / "bundle")
    assert read == written
    assert read.spec == replace(SPEC, files={name: sha256_of(path) for name, path in files.items()})
    assert isinstance(read.spec.locnet.window_zyx, tuple)
    assert read.sha256 == hashlib.sha256((read.folder / "bundle.json").read_bytes()).hexdigest()
    assert read.path_of("locnet.onnx").read_bytes() == files["locnet.onnx"].read_bytes()


def test_the_digest_is_the_one_of_the_standard(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_whole_numbers_are_read_as_floats_where_floats_are_meant(folder):
    rewrite(folder, lambda data: data["locnet"].update(spacing_mm=2))
    assert isinstance(open_bundle(folder).spec.locnet.spacing_mm, float)


def test_a_bundle_is_replaced_whole(folder, files):
    files["locnet.onnx"].write_bytes(b"newer")
    newer = write_bundle(replace(SPEC, version="2.0"), files, folder)
    assert open_bundle(folder) == newer
    assert open_bundle(folder).path_of("locnet.onnx").read_bytes() == b"newer"
    assert sorted(path.name for path in folder.parent.iterdir() if path.is_dir()) == ["bundle"]


def test_a_failed_write_leaves_the_old_bundle_and_nothing_else(folder, files, monkeypatch):
    before = open_bundle(folder)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(bundle_module.shutil, "copyfile", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bundle(replace(SPEC, version="2.0"), files, folder)
    assert open_bundle(folder) == before
    assert sorted(path.name for path in folder.parent.iterdir() if path.is_dir()) == ["bundle"]


def test_another_folder_is_never_overwritten(files, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(BundleError, match="is no bundle"):
        write_bundle(SPEC, files, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_writing_needs_the_networks(files, tmp_path):
    with pytest.raises(BundleError, match=r"'locnet\.onnx' is not among its files"):
        write_bundle(SPEC, {"fracsegnet.onnx": files["fracsegnet.onnx"]}, tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"are missing: .*gone"):
        write_bundle(SPEC, {**files, "locnet.onnx": tmp_path / "gone"}, tmp_path / "bundle")
    with pytest.raises(BundleError, match="cannot be written as JSON"):
        write_bundle(replace(SPEC, accuracy={"f1": float("nan")}), files, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_file_the_bundle_does_not_have_is_named(folder):
    with pytest.raises(BundleError, match=r"has no c\.onnx; it has locnet\.onnx, fracsegnet\.onnx"):
        open_bundle(folder).path_of("c.onnx")


# The network for levels, which a bundle may lack.

LEVELNET = LevelNetSpec(
    file="levelnet.onnx",
    spacing_mm=4.0,
    crop_zyx=(64, 48, 48),
    intensity=IntensityWindow(-400.0, 1000.0),
    level_names=LEVEL_NAMES,
    min_confidence=0.5,
)


@pytest.fixture
def with_levels(files, tmp_path):
    path = tmp_path / "c.onnx"
    path.write_bytes(b"levels")
    return write_bundle(replace(SPEC, levelnet=LEVELNET), {**files, "levelnet.onnx": path}, tmp_path / "with").folder


def test_a_bundle_with_levels_is_read_back(with_levels):
    spec = open_bundle(with_levels).spec
    assert spec.levelnet == LEVELNET
    assert [network.file for network in spec.networks] == ["locnet.onnx", "fracsegnet.onnx", "levelnet.onnx"]


@pytest.mark.parametrize("change", [lambda d: d.pop("levelnet"), lambda d: d.update(levelnet=None)])
def test_a_bundle_without_levels_opens_as_before(folder, change):
    rewrite(folder, change)
    spec = open_bundle(folder).spec
    assert spec.levelnet is None
    assert [network.file for network in spec.networks] == ["locnet.onnx", "fracsegnet.onnx"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spacing_mm": 0}, "levelnet.spacing_mm should be positive"),
        ({"crop_zyx": [64, 0, 48]}, "levelnet.crop_zyx should be positive"),
        ({"intensity": {"low_hu": 5, "high_hu": 5}}, "levelnet.intensity should have low_hu < high_hu"),
        ({"level_names": list(LEVEL_NAMES[::-1])}, "levelnet.level_names should be none, C1"),
        ({"min_confidence": 0.4}, "levelnet.min_confidence should be from 0.5 to below 1, met 0.4"),
        ({"file": "other.onnx"}, "'other.onnx' is not among its files"),
        ({"colour": "red"}, "levelnet has unknown keys: colour"),
    ],
)
def test_a_network_for_levels_that_makes_no_sense_is_refused(with_levels, values, message):
    rewrite(with_levels, lambda data: data["levelnet"].update(values))
    with pytest.raises(BundleError, match=message):
        open_bundle(with_levels)


@pytest.mark.parametrize("value", [7, [], "levelnet.onnx", False])
def test_what_stands_for_the_network_for_levels_is_an_object(with_levels, value):
    rewrite(with_levels, lambda data: data.update(levelnet=value))
    with pytest.raises(BundleError, match="levelnet should be an object"):
        open_bundle(with_levels)


# The first look, which older bundles lack.

SCOUT = ScoutSpec(spacing_mm=6.0, overlap=0.125, threshold=0.2, margin_mm=6.0, follow_threshold=0.3, share=0.03)


@pytest.fixture
def with_scout(files, tmp_path):
    return write_bundle(replace(SPEC, locnet=replace(SPEC.locnet, scout=SCOUT)), files, tmp_path / "scout").folder


def test_a_first_look_is_kept(with_scout):
    assert open_bundle(with_scout).spec.locnet == replace(SPEC.locnet, scout=SCOUT)


@pytest.mark.parametrize("change", [lambda d: d["locnet"].pop("scout"), lambda d: d["locnet"].update(scout=None)])
def test_a_bundle_without_a_first_look_is_run_everywhere(with_scout, change):
    rewrite(with_scout, change)
    assert open_bundle(with_scout).spec.locnet == SPEC.locnet


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spacing_mm": 2.0}, "scout.spacing_mm should be above locnet.spacing_mm, met 2"),
        ({"overlap": 1.0}, "scout.overlap should be from 0 to below 1, met 1"),
        ({"share": -0.1}, "scout.share should be from 0 to below 1, met -0.1"),
        ({"threshold": 2}, "scout.threshold should be from 0 to 1, met 2"),
        ({"margin_mm": -1}, "scout.margin_mm should not be negative, met -1"),
        ({"follow_threshold": 0.7}, "scout.follow_threshold should be from 0 to below heatmap_threshold, met 0.7"),
        ({"colour": "red"}, "locnet: scout has unknown keys: colour"),
        ({"share": "all"}, "locnet: scout: share should be a number"),
    ],
)
def test_a_first_look_that_makes_no_sense_is_refused(with_scout, values, message):
    rewrite(with_scout, lambda data: data["locnet"]["scout"].update(values))
    with pytest.raises(BundleError, match=message):
        open_bundle(with_scout)


@pytest.mark.parametrize("value", [7, [], False])
def test_what_stands_for_the_first_look_is_an_object(with_scout, value):
    rewrite(with_scout, lambda data: data["locnet"].update(scout=value))
    with pytest.raises(BundleError, match="scout should be an object"):
        open_bundle(with_scout)


# What is refused.


def test_a_changed_file_is_refused_with_both_digests(folder):
    expected = open_bundle(folder).spec.files["locnet.onnx"]
    (folder / "locnet.onnx").write_bytes(b"other")
    met = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(BundleError, match=rf"locnet\.onnx is not the file.*expected SHA-256 {expected}, met {met}"):
        open_bundle(folder)


def test_a_missing_file_is_refused(folder):
    (folder / "fracsegnet.onnx").unlink()
    with pytest.raises(BundleError, match=r"fracsegnet\.onnx cannot be read"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("licence"), r"bundle\.json lacks licence"),
        (lambda d: d.pop("schema_version"), r"lacks schema_version"),
        (lambda d: d.pop("clinical"), r"lacks clinical"),  # has a default in the code, yet must be said
        (lambda d: d["locnet"].pop("overlap"), r"bundle\.json: locnet lacks overlap"),
        (lambda d: d["locnet"]["intensity"].pop("low_hu"), r"locnet: intensity lacks low_hu"),
        (lambda d: d.update(colour="red"), r"unknown keys: colour"),
        (lambda d: d["fracsegnet"].update(x=1, y=2), r"fracsegnet has unknown keys: x, y"),
        (lambda d: d.update(name=3), r"name should be a text; met 3"),
        (lambda d: d.update(clinical=1), r"clinical should be true or false; met 1"),
        (lambda d: d["locnet"].update(overlap="0.5"), r'overlap should be a number; met "0\.5"'),
        (lambda d: d["locnet"].update(overlap=True), r"overlap should be a number; met true"),
        (lambda d: d["locnet"].update(window_zyx=[96, 96]), r"window_zyx should hold 3 values; met 2"),
        (
            lambda d: d["locnet"].update(window_zyx=[96, 96, 96.0]),
            r"window_zyx\[2\] should be a whole number; met 96\.0",
        ),
        (lambda d: d["locnet"].update(window_zyx=96), r"window_zyx should be a list; met 96"),
        (lambda d: d["fracsegnet"].update(grade_names="0123"), r"grade_names should be a list"),
        (lambda d: d.update(locnet=None), r"locnet should be an object; met null"),
        (lambda d: d.update(levelnet=3), r"bundle\.json: levelnet should be an object; met 3"),
        (lambda d: d.update(grading={}), r"bundle\.json: grading lacks "),
        (lambda d: d["locnet"].update(scout=[]), r"locnet: scout should be an object; met \[\]"),
        (lambda d: d["fracsegnet"].update(mirrored=None), r"mirrored should be true or false; met null"),
        (lambda d: d.update(files=[]), r"files should be an object"),
        (lambda d: d["files"].update({"locnet.onnx": 7}), r"files\[locnet\.onnx\] should be a text"),
        (lambda d: d["locnet"].update(spacing_mm=10**400), r"spacing_mm should be a finite number"),
        (lambda d: d.update(schema_version=2), r"schema_version 2; this software reads 1"),
        (lambda d: d.update(schema_version=True), r"schema_version True"),
        (lambda d: d.update(schema_version="1"), r"schema_version '1'"),
    ],
)
def test_a_description_of_another_form_is_refused(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("network", "values", "message"),
    [
        ("locnet", {"variant": "G"}, "variant should be F or H, met 'G'"),
        ("locnet", {"spacing_mm": 0}, "spacing_mm should be positive"),
        ("locnet", {"window_zyx": [0, 96, 96]}, "window_zyx should be positive"),
        ("locnet", {"overlap": 1.0}, "overlap should be from 0 to below 1, met 1"),
        ("locnet", {"heatmap_threshold": 1.5}, "heatmap_threshold should be from 0 to 1"),
        ("locnet", {"min_confidence": -0.1}, "min_confidence should be from 0 to 1"),
        ("locnet", {"peak_separation_voxels": -1}, "peak_separation_voxels should not be negative"),
        ("locnet", {"intensity": {"low_hu": 5, "high_hu": 5}}, "locnet.intensity should have low_hu < high_hu"),
        ("locnet", {"file": "../locnet.onnx"}, "is not among its files"),
        ("fracsegnet", {"crop_zyx": [96, 96, 0]}, "crop_zyx should be positive"),
        ("fracsegnet", {"mask_channels": ["body", "vertebra"]}, "begin with vertebra"),
        ("fracsegnet", {"mask_channels": []}, "begin with vertebra"),
        ("fracsegnet", {"mask_threshold": 2}, "mask_threshold should be from 0 to 1"),
        ("fracsegnet", {"grade_names": []}, "grade_names should be distinct, at least one"),
        ("fracsegnet", {"spacing_mm": -1}, "fracsegnet.spacing_mm should be positive"),
    ],
)
def test_values_that_make_no_sense_are_refused(folder, network, values, message):
    rewrite(folder, lambda data: data[network].update(values))
    with pytest.raises(BundleError, match=message):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["../evil.onnx", "a/b.onnx", "/etc/passwd", "C:\\x", "bundle.json", ".", ""])
def test_files_outside_the_bundle_cannot_be_named(folder, name):
    rewrite(folder, lambda data: data["files"].update({name: "0" * 64}))
    with pytest.raises(BundleError, match="cannot be the name of a file in a bundle"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[]", "should be an object"),
        (b'{"name": "a", "name": "b"}', "key 'name' twice"),
        (b'{"name": NaN}', "holds NaN"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_what_is_no_json_is_refused(folder, text, message):
    (folder / "bundle.json").write_bytes(text)
    with pytest.raises(BundleError, match=message):
        open_bundle(folder)


def test_a_path_without_a_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="There is no bundle at"):
        open_bundle(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="is no bundle"):
        open_bundle(tmp_path / "empty")


# The default bundle.


def test_the_default_bundle_lies_in_the_package(folder, monkeypatch):
    assert Path(bundle_module.__file__).parent / "bundles" / "default" == bundle_module.DEFAULT_BUNDLE
    monkeypatch.setattr(bundle_module, "DEFAULT_BUNDLE", folder)
    assert open_bundle() == open_bundle(folder)


def test_without_a_default_bundle_the_message_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setattr(bundle_module, "DEFAULT_BUNDLE", tmp_path / "none")
    with pytest.raises(BundleError, match=r"make bundle.*--bundle"):
        open_bundle()


# Zips.


def zipped(folder, path, *, inside=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, inside + file.name)
    return path


@pytest.mark.parametrize("inside", ["", "bundle-1.0/"])
def test_a_zip_is_the_bundle_it_holds(folder, tmp_path, cache, inside):
    plain, packed = open_bundle(folder), open_bundle(zipped(folder, tmp_path / "b.zip", inside=inside))
    assert packed.spec == plain.spec
    assert packed.sha256 == plain.sha256
    assert packed.folder.parent == cache.resolve()
    assert [path.name for path in cache.iterdir()] == [packed.folder.name]


def test_a_zip_is_unpacked_once_and_again_when_what_was_unpacked_is_damaged(folder, tmp_path, monkeypatch):
    path = zipped(folder, tmp_path / "b.zip")
    unpacked, extract = [], bundle_zip._extract
    monkeypatch.setattr(bundle_zip, "_extract", lambda *args: (unpacked.append(args), extract(*args)))
    first = open_bundle(path)
    assert open_bundle(path) == first
    assert len(unpacked) == 1
    (first.folder / "locnet.onnx").write_bytes(b"damaged")
    assert open_bundle(path) == first
    assert len(unpacked) == 2
    assert first.path_of("locnet.onnx").read_bytes() != b"damaged"


def test_a_zip_with_a_changed_file_is_refused(folder, tmp_path):
    (folder / "locnet.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="is not the file its bundle was made with"):
        open_bundle(zipped(folder, tmp_path / "b.zip"))


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "C:/evil", "a\\..\\evil"])
def test_members_that_would_land_outside_are_refused(folder, tmp_path, cache, name):
    path = zipped(folder, tmp_path / "b.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(BundleError, match="would land outside"):
        open_bundle(path)
    assert not list(tmp_path.rglob("evil*"))
    assert not list(cache.iterdir())


def test_links_and_twins_in_a_zip_are_refused(folder, tmp_path):
    path = zipped(folder, tmp_path / "b.zip")
    twins = tmp_path / "twins.zip"
    twins.write_bytes(path.read_bytes())
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(BundleError, match="is a link"):
        open_bundle(path)
    with zipfile.ZipFile(twins, "a") as archive:
        archive.writestr("LOCNET.onnx", b"x")
    with pytest.raises(BundleError, match="two members of one name"):
        open_bundle(twins)


def test_a_zip_that_unpacks_to_too_much_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_zip, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(BundleError, match="more than 1000"):
        open_bundle(zipped(folder, tmp_path / "b.zip"))


def test_what_is_no_zip_or_holds_no_bundle_is_refused(folder, tmp_path):
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(BundleError, match="not a readable zip"):
        open_bundle(tmp_path / "text.zip")
    path = zipped(folder, tmp_path / "b.zip")
    damaged = bytearray(path.read_bytes())
    damaged[60:90] = bytes(30)
    (tmp_path / "damaged.zip").write_bytes(damaged)
    with pytest.raises(BundleError, match="not a readable zip"):
        open_bundle(tmp_path / "damaged.zip")
    (folder / "bundle.json").unlink()
    with pytest.raises(BundleError, match=r"should hold one bundle\.json; it holds 0"):
        open_bundle(zipped(folder, tmp_path / "empty.zip"))


def test_a_cache_that_cannot_be_made_is_said(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(bundle_zip, "user_cache_folder", lambda name: tmp_path / "file" / name)
    with pytest.raises(BundleError, match="cannot be unpacked"):
        open_bundle(zipped(folder, tmp_path / "b.zip"))


@pytest.mark.parametrize(
    ("platform", "expected"),
    [("linux", "base/vertscan/x"), ("win32", "base/vertscan/Cache/x"), ("darwin", "Library/Caches/vertscan/x")],
)
def test_the_cache_is_where_the_platform_wants_it(monkeypatch, tmp_path, platform, expected):
    monkeypatch.setattr("runtime.cache.sys.platform", platform)
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "base"))
    assert user_cache_folder("x").as_posix().endswith(expected)


def test_the_spec_given_is_not_changed(files, tmp_path):
    before = copy.deepcopy(SPEC)
    write_bundle(SPEC, files, tmp_path / "bundle")
    assert before == SPEC


GRADING = GradingSpec(0.8, 0.4, (0.0, -1.0, -1.2, -1.2), 0.02, 0.05, 0.01, 0.9, (0.5, 0.4, 0.6), (0.1, 0.0, 0.3))


@pytest.fixture
def with_grading(files, tmp_path):
    return write_bundle(replace(SPEC, grading=GRADING), files, tmp_path / "graded").folder


def test_constants_of_the_combined_grade_survive(with_grading):
    assert open_bundle(with_grading).spec.grading == GRADING


@pytest.mark.parametrize("change", [lambda d: d.pop("grading"), lambda d: d.update(grading=None)])
def test_a_bundle_from_before_grades_were_combined_opens(with_grading, change):
    rewrite(with_grading, change)
    assert open_bundle(with_grading).spec.grading is None


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"loss_sd": 0.0}, "grading.loss_sd should be positive"),
        ({"network_weight": -1.0}, "grading.network_weight should not be negative"),
        ({"reach": 0.1}, "grading.reach should be from 0.3 to 1"),
        ({"height_shares": [0.5, 1.5, 0.5]}, "grading.height_shares should be from 0 to 1"),
        ({"prior": [0.0]}, "prior should hold 4 values"),
        ({"colour": 1}, "grading has unknown keys: colour"),
    ],
)
def test_constants_that_make_no_sense_are_refused(with_grading, values, complaint):
    rewrite(with_grading, lambda data: data["grading"].update(values))
    with pytest.raises(BundleError, match=complaint):
        open_bundle(with_grading)
