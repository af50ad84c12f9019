"""The evaluation command: resumable, shareable, honest about what is missing, with figures that others can read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from export.__main__ import _read_accuracy
from runtime.bundle import open_bundle
from runtime.errors import InputError
from runtime.findings import Heights, Measured, NetworkOpinion
from runtime.volume import Grid, Volume
from train import evaluate
from train.evaluate import TrueScan, TrueVertebra, evaluate_scan, made_ahead, main, shard, summarise
from train.evaluation.plain import from_plain, to_plain
from train.evaluation.records import ScanRecord
from train.evaluation.report import as_markdown
from train.evaluation.run import Extras
from train.evaluation.store import ScanStore
from train.evaluation.truth import ScanItem, phantom_items, verse_items
from train.phantom import write_verse
from train.phantom.render import make_scan

GRID = Grid((40, 10, 10), np.eye(4))


class Fake:
    """A pipeline that finds what it is told: (centre, grade), with one plane of mask each."""

    def __init__(self, *found: tuple[float, int]) -> None:
        self.found = found
        self.seen: list[str] = []

    def analyse(self, volume: Volume) -> SimpleNamespace:
        self.seen.append(volume.name)
        labels = np.zeros(volume.array.shape, np.uint8)
        vertebrae = []
        for label, (z, grade) in enumerate(self.found, start=1):
            labels[int(z)] = label
            vertebrae.append(
                SimpleNamespace(
                    centre_ras_mm=(5.0, 5.0, z), confidence=0.9, level=None, grade=grade, mask_label=label,
                    grade_probabilities=tuple(float(g == grade) for g in range(4)), height_loss=0.1,
                    heights_mm=Heights(20, 21, 22), measured=Measured(1, 0.2, Heights(23, 20, 20)),
                    network=NetworkOpinion(2, (0.0, 0.0, 1.0, 0.0), Heights(20, 20, 20), 0.3),
                )
            )  # fmt: skip
        return SimpleNamespace(findings=SimpleNamespace(vertebrae=vertebrae), labels=labels)

    def __enter__(self) -> "Fake":
        return self

    def __exit__(self, *_: object) -> None:
        return None


def scan(name: str = "scan") -> TrueScan:
    mask = np.zeros((40, 10, 10), np.uint8)
    mask[5], mask[30:32] = 19, 20
    vertebrae = (
        TrueVertebra(19, np.array([5.0, 5.0, 5.0]), 0, (20.0, 20.0, 20.0)),
        TrueVertebra(20, np.array([5.0, 5.0, 30.0]), 2, None),
    )
    return TrueScan(Volume(np.zeros((40, 10, 10), np.int16), GRID, name), vertebrae, mask)


def items(count: int, **_: Any) -> list[ScanItem]:
    return [ScanItem(f"s{n}", f"seed {n}", lambda n=n: scan(f"s{n}")) for n in range(count)]  # type: ignore[misc]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """The command with small scans and a pipeline that answers at once."""
    pipeline = Fake((5.0, 0), (30.0, 3))
    monkeypatch.setattr(evaluate, "phantom_items", items)
    monkeypatch.setattr(evaluate, "Pipeline", SimpleNamespace(open=lambda *_, **__: pipeline))
    return pipeline


def test_everything_found() -> None:
    result = evaluate_scan(Fake((5.0, 0), (30.0, 3)), scan())  # type: ignore[arg-type]
    assert result.false_positives == 0
    assert [v.error_mm for v in result.vertebrae] == [0, 0]
    assert [v.dice for v in result.vertebrae] == pytest.approx([1, 2 / 3], abs=1e-4)
    assert result.vertebrae[0].height_errors_mm == (0, 1, 2)
    summary = summarise([result])
    assert summary.localisation.overall.recall_10mm == 1
    assert summary.grades.confusion_rows_true == ((1, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 0))
    assert summary.alone is None
    assert summary.locnet_h is None


def test_each_witness_is_told_beside_what_was_reported() -> None:
    result = evaluate_scan(Fake((5.0, 0), (30.0, 3)), scan())  # type: ignore[arg-type]
    assert result.voxel_mm == 1.0
    summary = summarise([result])
    called = [[f.called for f in witness.grades.by_grade]
              for witness in (summary, summary.network_alone, summary.measured_alone)]  # fmt: skip
    assert called == [[1, 0, 0, 1], [0, 0, 2, 0], [0, 2, 0, 0]]
    heights = [w.heights.mean_absolute_error_mm for w in (summary, summary.network_alone, summary.measured_alone)]
    assert heights == pytest.approx([1.0, 0.0, 1.0])
    assert summary.measured_alone.grades.missed == summary.grades.missed == 0
    text = as_markdown(summary)
    assert "| mask | 2 |" in text
    assert "| network | 2 |" in text


def test_nothing_found_is_a_result() -> None:
    summary = summarise([evaluate_scan(Fake(), scan())])  # type: ignore[arg-type]
    assert summary.localisation.overall.recall_10mm == 0
    assert summary.grades.missed == 2
    plain = to_plain(summary)
    assert plain["masks"]["overall"]["dice"] is None
    json.dumps(plain, allow_nan=False)
    json.dumps(to_plain(summarise([])), allow_nan=False)


def test_records_survive_being_written_and_read() -> None:
    record = evaluate_scan(Fake((5.0, 0), (19.0, 1)), scan(), code_version="v")  # type: ignore[arg-type]
    record = replace(record, heatmap=record.whole)
    assert from_plain(ScanRecord, json.loads(json.dumps(to_plain(record)))) == record
    for spoilt in ({}, [], {**to_plain(record), "more": 1}, {**to_plain(record), "seconds": "1"}):
        with pytest.raises(ValueError, match=r"no |is no"):
            from_plain(ScanRecord, spoilt)


def test_figures_for_the_bundle(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    assert main(["--phantoms", "2", "-o", str(out), "--quiet"]) == 0
    assert "| overall | 4 | 1.000 |" in capsys.readouterr().out
    accuracy = _read_accuracy(out)
    assert accuracy["localisation"]["overall"]["recall_10mm"] == 1
    made = accuracy["provenance"]
    assert made["command"].startswith("python -m train.evaluate --phantoms 2")
    assert made["first_seed"] == evaluate.HELD_OUT_SEED
    assert made["bundle_sha256"] == open_bundle().sha256
    assert made["phantoms"]["fracture_probability"] > 0
    assert made["code_versions"] != [""]
    assert len(json.loads(out.read_text())["scans"]) == 2


def test_a_folder_is_resumed_and_shards_share_it(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ["-o", str(tmp_path / "run"), "--quiet"]
    assert main(["--phantoms", "3", "--shard", "1/2", *folder]) == 0
    assert fake.seen == ["s0", "s2"]
    assert "2 of 3 scans are done" in capsys.readouterr().out
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main(["--phantoms", "3", "--shard", "2/2", *folder]) == 0
    assert fake.seen == ["s0", "s2", "s1"]
    assert _read_accuracy(tmp_path / "run" / "summary.json")["scans"] == 3
    before = capsys.readouterr().out
    assert main(["--phantoms", "3", *folder]) == 0
    assert fake.seen == ["s0", "s2", "s1"], "nothing is done twice"
    assert capsys.readouterr().out.split("## How")[0] == before.split("## How")[0]
    assert main(["--phantoms", "4", *folder]) == 0
    assert fake.seen[3:] == ["s3"]


def test_another_bundle_engine_or_scan_is_another_record(tmp_path: Path) -> None:
    spec, (item,) = open_bundle().spec, items(1)
    store = ScanStore(tmp_path, spec, engine="a fp32", extras=Extras())
    store.put(item, evaluate_scan(Fake(), item.load()))  # type: ignore[arg-type]
    assert store.get(item) is not None
    assert ScanStore(tmp_path, replace(spec, accuracy={"f1": 1.0}), engine="a fp32", extras=Extras()).get(item)
    others = (
        ScanStore(tmp_path, replace(spec, files={"locnet.onnx": "0" * 64}), engine="a fp32", extras=Extras()),
        ScanStore(tmp_path, spec, engine="b fp32", extras=Extras()),
        ScanStore(tmp_path, spec, engine="a fp32", extras=Extras(true_centres=True)),
    )
    assert all(other.get(item) is None for other in others)
    assert store.get(ScanItem("s0", "changed", item.load)) is None


def test_a_broken_record_is_named(fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--phantoms", "1", "-o", str(tmp_path), "--quiet"]
    assert main(command) == 0
    (path,) = (tmp_path / "scans").iterdir()
    path.write_text("{")
    assert main(command) == 2
    assert path.name in capsys.readouterr().err


def test_report_and_pictures(fake: Fake, tmp_path: Path) -> None:
    assert main(["--phantoms", "2", "--report", str(tmp_path / "a"), "--quiet"]) == 0
    assert main(["--phantoms", "2", "--report", str(tmp_path / "b" / "figures.md"), "--quiet"]) == 0
    for path in (tmp_path / "a" / "report.md", tmp_path / "b" / "figures.md"):
        text = path.read_text(encoding="utf-8")
        for name in ("confusion", "reliability", "roc", "errors"):
            assert f"({name}.png)" in text
            assert (path.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "thesis LocNet-F" in text
        assert "3.39 ± 5.60" in text
        assert "no ranking" in text, "phantoms are no VerSe"
        assert "| 1 | 0 | 0 | - | - | - | 0.09 | - |" in text, "undefined is a dash"


def test_a_report_of_nothing_found(fake: Fake, tmp_path: Path) -> None:
    fake.found = ()
    assert main(["--phantoms", "1", "--report", str(tmp_path), "--quiet"]) == 0


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small phantoms in VerSe's layout."""
    root = tmp_path_factory.mktemp("verse")
    for seed in (2**31 + 5, 2**31 + 20):
        write_verse(make_scan(seed, spacing_mm=5.0), root, f"p{seed}")
    return root


def test_truth_of_phantoms_survives_verses_layout(tiny_data: Path) -> None:
    written = {item.name: item.load() for item in verse_items(tiny_data, None)}
    assert len(written) == 2
    for seed in (2**31 + 5, 2**31 + 20):
        made, read = make_scan(seed, spacing_mm=5.0), written[f"sub-p{seed}"]
        assert read.patient == f"sub-p{seed}"
        assert read.mask is not None
        np.testing.assert_array_equal(read.mask, made.mask)
        assert [v.level for v in read.vertebrae] == [v.level for v in made.vertebrae]
        for a, b in zip(read.vertebrae, made.vertebrae, strict=True):
            assert np.linalg.norm(a.centre_ras_mm - b.centre_ras_mm) < 0.1
            assert a.heights_mm == pytest.approx(b.heights_mm, abs=1e-3)
            assert a.grade == (b.grade if b.level[0] != "C" else None)


def test_data_of_one_split(tiny_data: Path) -> None:
    names = [{item.name for item in verse_items(tiny_data, None, split=s)} for s in ("training", "validation")]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {item.name for item in verse_items(tiny_data, None)}


def test_scans_that_were_trained_on_are_not_mixed_in_unsaid(
    fake: Fake, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.found = ()
    command = ["--data", str(tiny_data), "--quiet", "-o", str(tmp_path)]
    assert main(command) == 0
    met = capsys.readouterr()
    warning = "1 of 2 scans are of the training split"
    assert warning in met.err
    assert f"Note: {warning}" in met.out
    assert "| scans by split | 1 training, 1 validation |" in met.out
    assert _read_accuracy(tmp_path / "summary.json")["provenance"]["splits"] == {"training": 1, "validation": 1}
    assert main([*command, "--split", "validation"]) == 0
    met = capsys.readouterr()
    assert met.err == ""
    assert "training split" not in met.out
    assert "| scans by split | 1 validation |" in met.out
    assert main(["--phantoms", "1", "--quiet"]) == 0
    met = capsys.readouterr()
    assert "by split" not in met.out + met.err


def test_scans_that_nothing_is_known_of_are_left_out_and_said(
    fake: Fake, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(tiny_data, tmp_path / "data")
    next(root.glob(f"derivatives/*{2**31 + 5}*/*_ctd.json")).unlink()
    fake.found = ()
    assert main(["--data", str(root), "--quiet", "-o", str(tmp_path / "out")]) == 0
    met = capsys.readouterr()
    note = f"1 scans without a centroid file were left out, e.g. sub-p{2**31 + 5}"
    assert note in met.err
    assert f"Note: {note}" in met.out
    accuracy = _read_accuracy(tmp_path / "out" / "summary.json")
    assert (accuracy["scans"], accuracy["provenance"]["without_centres"]) == (1, [f"sub-p{2**31 + 5}"])


def test_items_change_with_their_files_and_grades(tiny_data: Path, tmp_path: Path) -> None:
    before = [item.fingerprint for item in verse_items(tiny_data, None)]
    assert before == [item.fingerprint for item in verse_items(tiny_data, None)]
    other = tmp_path / "grades.json"
    other.write_text(json.dumps({f"sub-p{2**31 + 5}_20": 3}))
    assert all(a != b.fingerprint for a, b in zip(before, verse_items(tiny_data, other), strict=True))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data", "{empty}"], "rawdata"),
        (["--data", "{data}", "--grades", "{alien}"], "--grades"),
        (["--data", "{data}", "--grades", "{empty}/none.csv"], "cannot be read"),
        (["--data", "{data}", "--split", "test"], "0 for test"),
        (["--data", "{bare}"], "centroid file"),
        (["--data", "{broken}", "--quiet"], "sub-x_ct.nii.gz"),
        (["--phantoms", "1", "--split", "test"], "--data"),
        (["--phantoms", "1", "--jobs", "2"], "-o DIR"),
        (["--phantoms", "1", "--shard", "1/2", "-o", "x.json"], "-o DIR"),
    ],
)
def test_what_it_cannot_do_is_said(
    arguments: list[str], says: str, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alien = tmp_path / "alien.json"
    alien.write_text('{"sub-alien_20": 1}')
    for name in ("empty", "bare", "broken"):
        (tmp_path / name).mkdir()
    for name in ("bare", "broken"):
        raw = tmp_path / name / "rawdata" / "sub-x"
        raw.mkdir(parents=True)
        (raw / "sub-x_ct.nii.gz").write_bytes(b"no scan")
    derived = tmp_path / "broken" / "derivatives" / "sub-x"
    derived.mkdir(parents=True)
    (derived / "sub-x_seg-subreg_ctd.json").write_text("[]")
    places = {"data": tiny_data, "alien": alien} | {n: tmp_path / n for n in ("empty", "bare", "broken")}
    assert main([a.format(**places) for a in arguments]) == 2
    assert says in capsys.readouterr().err


def test_scans_without_masks_grades_or_heights_are_evaluated_and_said(fake: Fake) -> None:
    bare = scan()
    vertebrae = tuple(replace(v, grade=None, heights_mm=None) for v in bare.vertebrae)
    bare = replace(bare, mask=None, vertebrae=vertebrae)
    summary = summarise([evaluate_scan(fake, bare), evaluate_scan(fake, scan())])  # type: ignore[arg-type]
    assert summary.localisation.overall.recall_10mm == 1
    assert [note.split(" scans")[0] for note in summary.notes] == ["1 of 2"] * 3
    versions = [evaluate_scan(fake, scan(), code_version=v) for v in "ab"]  # type: ignore[arg-type]
    assert "several versions" in summarise(versions).notes[-1]


def test_several_jobs_are_shards_of_one_folder(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Children are run in this process, so that they see the fake."""

    class Child:
        def __init__(self, command: list[str], **_: Any) -> None:
            assert command[1:3] == ["-m", "train.evaluate"]
            self.status = main(command[3:])

        def wait(self) -> int:
            return self.status

    monkeypatch.setattr(evaluate, "subprocess", SimpleNamespace(Popen=Child, DEVNULL=None))
    assert main(["--phantoms", "3", "--jobs", "2", "-o", str(tmp_path), "--quiet"]) == 0
    assert sorted(fake.seen) == ["s0", "s1", "s2"]
    assert main(["--phantoms", "9", "--jobs", "2", "--shard", "2/3", "-o", str(tmp_path / "part"), "--quiet"]) == 0
    assert sorted(fake.seen[3:]) == ["s1", "s4", "s7"], "this machine's part and no other"
    assert "3 of 9 scans are done" in capsys.readouterr().out
    assert main(["--phantoms", "3", "--jobs", "2", "-o", str(tmp_path), "--quiet"]) == 0
    assert _read_accuracy(tmp_path / "summary.json")["provenance"]["command"].count("--shard") == 0
    assert "Evaluation of 3 scans" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_other_shards_are_refused(text: str) -> None:
    with pytest.raises(Exception, match="K/N"):
        shard(text)


def test_phantoms_are_held_out() -> None:
    names = [item.name for item in phantom_items(2)]
    assert names == [f"phantom-{2**31}", f"phantom-{2**31 + 1}"]


def test_made_ahead_keeps_order_and_passes_errors_on() -> None:
    assert list(made_ahead(lambda n: n * n, range(5))) == [0, 1, 4, 9, 16]
    assert list(made_ahead(lambda n: n, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(made_ahead(lambda n: 1 / n, [1, 0, 2]))


def test_writing_where_nothing_can_be_written_is_said(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        evaluate.write_json(tmp_path / "file" / "x.json", {})
    assert main(["--phantoms", "1", "-o", str(tmp_path / "file" / "x.json"), "--quiet"]) == 2
