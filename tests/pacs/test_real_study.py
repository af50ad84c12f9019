"""A real series from the archive through the node with the bundle that ships, and its results back in the archive."""

from __future__ import annotations

import numpy as np
from pydicom import dcmread

from tests.pacs.batch import archive_and_node, fetch
from tests.pacs.overlay import draw, overlaid
from tests.runtime.node.peers import wait_until


def test_the_results_of_a_real_study_lie_on_its_images_as_the_archive_gives_them_back(shared_data, tmp_path, capsys):
    files = sorted((shared_data / "dicom" / "visible-human-pelvis").glob("*.dcm"))
    study_uid = str(dcmread(files[0], specific_tags=["StudyInstanceUID"]).StudyInstanceUID)
    with archive_and_node(tmp_path, None) as (orthanc, node):
        orthanc.upload(files)
        orthanc.send_to_node([orthanc.study(study_uid)])
        wait_until(lambda: node.is_delivered(capsys), what=f"delivery: {node.log}", deadline_s=1800)
        folder = fetch(orthanc, study_uid, tmp_path / "fetched")
    kinds = [path.name.split("-")[0] for path in folder.iterdir()]
    assert {kind: kinds.count(kind) for kind in kinds} == {"CT": 150, "SEG": 1, "SR": 1, "OT": 1, "DOC": 1}
    study = overlaid(folder)
    assert study.names
    for number in study.names:
        mask = study.labels == number
        assert mask.any()
        assert study.hu[mask].mean() > 100  # bone, so the masks are neither mirrored nor shifted
    z, y, x = np.argwhere(study.labels).mean(axis=0)
    bone = np.argwhere(study.hu > 250)
    assert abs(x - np.median(bone[:, 2])) < 40 / study.spacing_zyx_mm[2]  # in the middle of the pelvis
    assert y > np.median(bone[:, 1])  # and in its back half
    assert 0 <= z < len(study.hu)
    picture = tmp_path / "overlay.png"
    draw(study).save(picture)
    print(f"look at {picture}")
