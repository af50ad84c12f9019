"""Folders of scans through the command line: read ahead, resumed, and never half-written."""

import gc
import json
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from runtime import infer
from runtime.errors import OutOfMemoryError
from runtime.findings import from_json
from runtime.infer import main
from runtime.output import Outputs
from runtime.pipeline import Pipeline
from runtime.resume import Named, finished_findings

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def scans(tmp_path, monkeypatch, ball_scan, save):
    """A folder of scans, one of them broken, beside an empty working directory."""
    folder = tmp_path / "scans"
    (folder / "deep").mkdir(parents=True)
    save(ball_scan(2).volume, folder / "a.nii.gz")
    (folder / "broken.nii.gz").write_bytes(b"no scan at all")
    save(ball_scan(3).volume, folder / "deep" / "a.nii")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return folder


@pytest.fixture
def run(ball_bundle):
    options = ["--bundle", str(ball_bundle), "--precision", "fp32", "--no-overview"]
    return lambda *arguments: main([*map(str, arguments), *options])


def files(folder):
    return {str(file.relative_to(folder)) for file in Path(folder).rglob("*") if file.is_file()}


def counted(monkeypatch):
    """The names of the scans that the networks are run on."""
    names, real = [], Pipeline.analyse

    def analyse(self, scan, **options):
        names.append(scan.volume.name)
        return real(self, scan, **options)

    monkeypatch.setattr(Pipeline, "analyse", analyse)
    return names


EXPECTED = {
    f"{place}/{name}" for place in ("a.vertebrae", "deep/a.vertebrae") for name in ("findings.json", "vertebrae.nii.gz")
}


def test_a_folder_of_scans_is_run_scan_by_scan_and_a_bad_one_stops_nothing(scans, run, capsys):
    assert run(scans, "-o", "out") == 2
    assert files("out") == EXPECTED
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "2 scans done, 1 failed"
    assert err.startswith(f"error: {scans / 'broken.nii.gz'}: ")
    assert len(err.splitlines()) == 1


def test_scans_of_a_folder_give_what_each_gives_alone(scans, run, capsys):
    assert run(scans, "-o", "out", "--json") == 2
    together = [from_json(line) for line in capsys.readouterr().out.splitlines()]
    for findings, name in zip(together, ("a.nii.gz", "deep/a.nii"), strict=True):
        assert run(scans / name, "-o", "alone", "--json") == 0
        alone = from_json(capsys.readouterr().out)
        assert (findings.scan, findings.vertebrae) == (alone.scan, alone.vertebrae)
        assert set(findings.timings_s) == set(alone.timings_s)
        assert findings.timings_s["total"] == pytest.approx(
            sum(s for stage, s in findings.timings_s.items() if stage != "total"), abs=0.2
        )


def test_resume_runs_what_is_missing_and_nothing_else(scans, run, capsys, monkeypatch):
    assert run(scans / "a.nii.gz", "-o", "out/a.vertebrae") == 0
    before = Path("out/a.vertebrae/findings.json").read_bytes()
    names = counted(monkeypatch)
    capsys.readouterr()
    assert run(scans, "-o", "out", "--resume") == 2
    assert names == ["a"]
    assert files("out") == EXPECTED
    assert Path("out/a.vertebrae/findings.json").read_bytes() == before
    out = capsys.readouterr().out
    assert f"a: done before, results in {Path('out/a.vertebrae')}" in out
    assert out.splitlines()[-1] == "1 scans done, 1 were done before, 1 failed"
    assert run(scans, "-o", "out", "--resume", "--json") == 2
    assert names == ["a"]
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["scan"]["sha256"] for line in lines] == [
        json.loads(Path("out", place, "findings.json").read_text())["scan"]["sha256"]
        for place in ("a.vertebrae", "deep/a.vertebrae")
    ]


@pytest.mark.parametrize("spoil", ["scan", "mask", "findings", "bundle", "overview"])
def test_resume_runs_again_what_is_not_complete_or_not_of_this_scan(
    scans, run, monkeypatch, spoil, ball_scan, save, ball_bundle
):
    scan = scans / "a.nii.gz"
    assert run(scan, "-o", "out") == 0
    names = counted(monkeypatch)
    assert run(scan, "-o", "out", "--resume") == 0
    assert names == []
    arguments = [scan, "-o", "out", "--resume"]
    if spoil == "scan":
        other = ball_scan(2).volume
        other.array[:] = np.where(other.array == other.array.max(), other.array - 1, other.array)
        save(other, scan)
    elif spoil == "mask":
        Path("out/vertebrae.nii.gz").unlink()
    elif spoil == "findings":
        Path("out/findings.json").write_text("{")
    elif spoil == "bundle":
        findings = json.loads(Path("out/findings.json").read_text())
        findings["bundle"]["sha256"] = "0" * 64
        Path("out/findings.json").write_text(json.dumps(findings))
    if spoil == "overview":
        assert main([*map(str, arguments), "--bundle", str(ball_bundle)]) == 0
    else:
        assert run(*arguments) == 0
    assert names == ["a"]


def changed_findings(**parts):
    """Write parts of the findings in ``out`` anew, as another run would have written them."""
    path = Path("out/findings.json")
    content = json.loads(path.read_text())
    for part, values in parts.items():
        content[part] = values if values is None else {**content[part], **values}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("before", "options", "runs_again"),
    [
        ({"engine": {"precision": "int8"}}, ["--precision", "auto"], False),
        ({"engine": {"precision": "int8"}}, ["--precision", "fp32"], True),
        ({"engine": {"precision": "fp32"}}, ["--precision", "fp32"], False),
        ({"engine": {"name": "onnxruntime"}}, [], False),
        ({"engine": {"name": "onnxruntime"}}, ["--engine", "openvino"], True),
        ({"engine": {"name": "openvino"}}, ["--engine", "openvino"], False),
        ({"settings": {"exhaustive": False}}, ["--exhaustive"], True),
        ({"settings": {"exhaustive": True}}, ["--exhaustive"], False),
        ({"settings": {"exhaustive": True}}, [], False),
        ({"settings": None}, ["--exhaustive"], True),
        ({"settings": None}, [], False),
    ],
)
def test_resume_runs_again_what_was_made_otherwise_than_is_asked_for_by_name(
    scans, ball_bundle, monkeypatch, before, options, runs_again
):
    def run(*more):
        return main([str(scans / "a.nii.gz"), "-o", "out", "--no-overview", "--bundle", str(ball_bundle), *more])

    assert run("--precision", "fp32") == 0
    changed_findings(**before)
    names = counted(monkeypatch)
    assert run("--resume", *options) == 0
    assert names == ["a"] * runs_again
    settings = from_json(Path("out/findings.json").read_text()).settings
    if runs_again:
        assert settings.exhaustive == ("--exhaustive" in options)


def test_a_damaged_segmentation_is_not_complete(scans, run):
    assert run(scans / "a.nii.gz", "-o", "out") == 0
    bundle_sha256 = from_json(Path("out/findings.json").read_text()).bundle.sha256
    seg, dataset = Path("out/seg.dcm"), Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SegmentationStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
    dataset.SegmentationType = "BINARY"
    dataset.save_as(seg, enforce_file_format=True)
    whole = seg.read_bytes()
    complete = []
    for size in range(len(whole) + 1):
        seg.write_bytes(whole[:size])
        before = finished_findings(
            Path("out"),
            bundle_sha256=bundle_sha256,
            outputs=Outputs(overview=False, dicom=("seg",), seg_type="BINARY"),
            named=Named("auto", "auto", exhaustive=False),
        )
        complete += [size] if before is not None else []
    assert complete == [len(whole)]


@pytest.mark.parametrize("name", ["findings.json", "vertebrae.nii.gz", "overview.png"])
def test_resume_runs_again_where_a_power_cut_left_an_empty_file(scans, ball_bundle, monkeypatch, name):
    arguments = [str(scans / "a.nii.gz"), "-o", "out", "--bundle", str(ball_bundle), "--precision", "fp32"]
    assert main(arguments) == 0
    whole = files("out")
    names = counted(monkeypatch)
    Path("out", name).write_bytes(b"")
    assert main([*arguments, "--resume"]) == 0
    assert names == ["a"]
    assert files("out") == whole
    assert Path("out", name).stat().st_size > 0


def test_what_did_not_fit_beside_another_scan_is_tried_alone(scans, run, monkeypatch, capsys):
    (scans / "broken.nii.gz").unlink()
    real, tries = Pipeline.prepare, []

    def prepare(self, scan, **options):
        tries.append(scan.suffix)
        if tries.count(".nii") == 1 and scan.suffix == ".nii":
            raise OutOfMemoryError("It does not fit.")
        return real(self, scan, **options)

    monkeypatch.setattr(Pipeline, "prepare", prepare)
    assert run(scans, "-o", "out") == 0
    assert tries == [".gz", ".nii", ".nii"]
    assert files("out") == EXPECTED
    assert capsys.readouterr().err == ""


class Arrays:
    """Stands for what a scan takes of the memory."""


@pytest.mark.parametrize("stage", ["prepare", "analyse"])
def test_a_scan_is_tried_again_only_when_the_memory_of_its_first_try_and_of_the_next_scan_is_free(
    scans, run, monkeypatch, capsys, stage, ball_scan, save
):
    (scans / "broken.nii.gz").unlink()
    save(ball_scan(2).volume, scans / "b.nii")
    short_of = {"prepare": "b", "analyse": "a"}[stage]
    held, prepared, tries = [], [], []
    real_prepare = Pipeline.prepare

    def prepare(self, scan, **options):
        result = real_prepare(self, scan, **options)
        prepared.append(weakref.ref(result))
        return result

    def once_out_of_memory(self, scan, **options):
        name = scan.name.partition(".")[0] if isinstance(scan, Path) else scan.volume.name
        if name == short_of and not tries:
            arrays = Arrays()
            held.append(weakref.ref(arrays))
            tries.append(name)
            raise OutOfMemoryError("It does not fit.") from MemoryError()
        if name == short_of and len(tries) == 1:
            tries.append(name)
            assert held[0]() is None
            assert [result for result in prepared if result() not in (None, scan)] == []
        return real_try(self, scan, **options)

    monkeypatch.setattr(Pipeline, "prepare", prepare)
    real_try = getattr(Pipeline, stage)
    monkeypatch.setattr(Pipeline, stage, once_out_of_memory)
    monkeypatch.setattr("runtime.scan_runner.give_back_memory", lambda: None)
    gc.disable()
    try:
        assert run(scans, "-o", "out") == 0
    finally:
        gc.enable()
    assert tries == [short_of, short_of]
    assert files("out") == EXPECTED | {f"b.vertebrae/{name}" for name in ("findings.json", "vertebrae.nii.gz")}
    out, err = capsys.readouterr()
    assert (out.splitlines()[-1], err) == ("3 scans done, 0 failed", "")


def test_a_scan_that_does_not_fit_alone_is_tried_once_more_and_then_given_up(scans, run, monkeypatch, capsys):
    (scans / "broken.nii.gz").unlink()
    real, tries = Pipeline.analyse, []

    def analyse(self, scan, **options):
        tries.append(scan.volume.grid.shape_zyx)
        if scan.volume.grid.shape_zyx == tries[0]:
            raise OutOfMemoryError("It does not fit.")
        return real(self, scan, **options)

    monkeypatch.setattr(Pipeline, "analyse", analyse)
    assert run(scans, "-o", "out") == 4
    assert [shape == tries[0] for shape in tries] == [True, True, False]
    assert files("out") == {name for name in EXPECTED if name.startswith("deep")}
    assert capsys.readouterr().err.splitlines() == [f"error: {scans / 'a.nii.gz'}: It does not fit."]


def test_a_collision_in_one_folder_is_refused_before_any_work(scans, run, capsys):
    (scans / "deep" / "A.mha").write_bytes(b"anything")
    assert run(scans, "-o", "out") == 2
    assert "would both be written to" in capsys.readouterr().err
    assert not Path("out").exists()


def test_the_help_says_what_a_folder_means():
    text = " ".join(infer.build_parser().format_help().split())
    assert "A folder that holds DICOM files, or a DICOMDIR, is one scan." in text


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_an_interrupt_between_scans_keeps_what_is_done_and_leaves_nothing_half(scans, ball_bundle):
    (scans / "broken.nii.gz").unlink()
    code = (
        "import signal, sys, time, runtime.pipeline as p; from runtime.infer import main;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "real = p.read_scan;"
        "p.read_scan = lambda path, *how: real(path, *how) if path.suffix == '.gz' else time.sleep(100);"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, str(scans), "--bundle", str(ball_bundle), "-o", "out", "--no-overview"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True) as child:
        for line in child.stdout:
            if "results in" in line:  # the next scan is still being read
                break
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert err == "error: interrupted; no half-written result was left\n"
    assert files("out") == {name for name in EXPECTED if name.startswith("a.vertebrae")}
    assert {entry.name for entry in Path("out").iterdir()} == {"a.vertebrae"}
