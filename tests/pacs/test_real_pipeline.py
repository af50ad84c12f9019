"""The real pipeline and the real writer behind the node, on a scan in which its small networks find balls."""

from __future__ import annotations

import json
import re
import time
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import MRImageStorage, generate_uid

from runtime.node.commands import main
from tests.pacs.scan_study import write_scan
from tests.runtime.conftest import make_scan
from tests.runtime.node.nodes import node_process, settings, write_toml
from tests.runtime.node.peers import wait_until
from tests.runtime.node.studies import capture

REASONS = {
    "1": "it is a localizer",
    "3": "slices 6.00 mm apart, 2 mm shorter, only 17 slices (60.2 points against it, the chosen one has 5.0)",
    "5": "sharp kernel B70f (11.0 points against it, the chosen one has 5.0)",
    "7": "no CT images but Secondary Capture Image (OT)",
    "8": "MR Image (MR) is no CT image",
}
"""Why each other series of the mixed study isn't read, by its number."""
RANKING = "runtime.readers.dicom_choice"


@pytest.fixture
def scan():
    return make_scan(3, orientation="LPS")


@pytest.fixture
def node(bench, ball_bundle):
    """A node process with the real command line."""
    folder = bench.folder / "real"
    values = settings(
        folder,
        bench.orthanc.port,
        analyse={"bundle": str(ball_bundle), "engine": "openvino", "precision": "fp32"},
        complete={"idle_s": 1.0, "ask_every_s": 0.3, "ask": ["archive"]},
    )
    values["receive"]["port"] = bench.node_port
    with node_process(folder, write_toml(folder / "node.toml", values), real=True) as node:
        yield node


def results_of(orthanc, study_uid):
    """The objects beside the CT images, by modality."""
    import urllib.request

    found = {}
    for modality in ("SEG", "SR", "OT", "DOC"):
        for one in orthanc.instances(study_uid, modality):
            url = f"http://127.0.0.1:{orthanc.http_port}/instances/{one['ID']}/file"
            with urllib.request.urlopen(url, timeout=30) as answer:
                found.setdefault(modality, []).append(dcmread(BytesIO(answer.read())))
    return found


def test_2_one_segmentation_report_picture_and_document_beside_the_study(bench, node, scan, tmp_path, capsys):
    study = write_scan(tmp_path / "s", scan.volume, study_uid=generate_uid(None), series_uid=generate_uid(None))
    bench.orthanc.start().upload(study.files)
    node.start()
    bench.orthanc.send_to_node([bench.orthanc.study(study.uid)])
    sent_s = time.monotonic()
    wait_until(lambda: node.is_delivered(capsys), what=f"delivery: {node.log}")
    took_s = time.monotonic() - sent_s
    results = results_of(bench.orthanc, study.uid)
    assert {modality: len(found) for modality, found in results.items()} == {"SEG": 1, "SR": 1, "OT": 1, "DOC": 1}
    everything = [one for found in results.values() for one in found]
    assert {str(one.PatientID) for one in everything} == {"PID-47110815"}
    assert {one.Manufacturer for one in everything} == {"vertscan"}
    (seg,) = results["SEG"]
    assert len(seg.SegmentSequence) == 3
    overlap = _labels(seg, study, scan.labels.shape) & (scan.labels > 0)
    assert overlap.sum() > 0.9 * (scan.labels > 0).sum()
    log = node.log.read_text()
    assert not [word for word in study.words if word in log]
    print(f"from the last image sent to the last result stored: {took_s:.1f} s, of which 1 s is the idle time")


def _labels(seg, study, shape):
    """Voxels of any segment, (z, y, x) on the source's slices."""
    order = {dcmread(path, stop_before_pixels=True).SOPInstanceUID: z for z, path in enumerate(study.files)}
    found = np.zeros(shape, bool)
    frames = seg.pixel_array.reshape(-1, *shape[1:])
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        found[order[source]] |= frame.astype(bool)
    return found


def test_10_of_a_mixed_study_the_right_series_is_taken_and_every_reason_is_logged(bench, node, scan, tmp_path, capsys):
    pytest.importorskip(RANKING, reason="this reader doesn't choose among series")
    study_uid, thin_uid = generate_uid(None), generate_uid(None)

    def series(name, **changes):
        uid = changes.pop("series_uid", None) or generate_uid(None)
        return write_scan(tmp_path / name, scan.volume, study_uid=study_uid, series_uid=uid, **changes).files

    files = [
        *series("thin", series_uid=thin_uid, ConvolutionKernel="B30f", SeriesDescription="soft 2.0", SeriesNumber=4),
        *series("bone", ConvolutionKernel="B70f", SeriesDescription="bone 2.0", SeriesNumber=5),
        *series("thick", step=3, ConvolutionKernel="B30f", SeriesDescription="soft 6.0", SeriesNumber=3),
        *series("scout", step=40, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesNumber=1),
    ]
    foreign = capture(study_uid, generate_uid(None), manufacturer="Others")
    foreign.SeriesNumber = 7
    foreign.save_as(tmp_path / "capture.dcm", enforce_file_format=True)
    magnetic = dcmread(files[0])
    magnetic.SOPClassUID = magnetic.file_meta.MediaStorageSOPClassUID = MRImageStorage
    magnetic.SOPInstanceUID = magnetic.file_meta.MediaStorageSOPInstanceUID = generate_uid(None)
    magnetic.SeriesInstanceUID, magnetic.SeriesNumber, magnetic.Modality = generate_uid(None), 8, "MR"
    magnetic.save_as(tmp_path / "magnetic.dcm", enforce_file_format=True)
    bench.orthanc.start().upload([*files, tmp_path / "capture.dcm", tmp_path / "magnetic.dcm"])
    node.start()
    bench.orthanc.send_to_node([bench.orthanc.study(study_uid)])
    wait_until(lambda: node.is_delivered(capsys), what=f"delivery: {node.log}")
    (seg,) = results_of(bench.orthanc, study_uid)["SEG"]
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == thin_uid
    log = node.log.read_text()
    assert re.search(r"Of 4 CT series, series 4 \(.*\) was read: fewest points against it \(5\.0\)", log), log
    reasons = dict(re.findall(r"Not read: series (\d+)(.*)$", log, re.MULTILINE))
    assert reasons.keys() == {"1", "3", "5", "7", "8"}
    for number, reason in REASONS.items():
        assert reason in reasons[number], log
    assert study_uid not in log


def test_mercures_module_with_the_real_pipeline(ball_bundle, scan, tmp_path, capsys):
    study = write_scan(tmp_path / "in", scan.volume, study_uid=generate_uid(None), series_uid=generate_uid(None))
    settings = {"bundle": str(ball_bundle), "engine": "openvino", "outputs": ["seg", "sr"]}
    (tmp_path / "in" / "task.json").write_text(json.dumps({"process": {"settings": settings}}))
    assert main(["module", "--in", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["result.json", "seg.dcm", "sr.dcm"]
    said = capsys.readouterr()
    assert not [word for word in study.words if word in said.err + said.out]
    assert not [word for word in study.words if word in (tmp_path / "out" / "result.json").read_text()]
