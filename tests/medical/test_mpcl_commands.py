"""The verbs of ``cl-medical mpcl`` from end to end on tiny volumes, and what they refuse."""

import json
import re
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from cl_medical.mpcl.inference import Segmenter
from cl_medical.volumes import DataOptions, DataPlan, read_cases, read_image, write_nifti
from contrastive_core.errors import InputError
from safetensors.torch import load_file

from tests.medical.conftest import OBLIQUE, TINY, ball, dataset, refused, run, save, series


def test_training_learns_and_leaves_a_whole_run_folder(trained):
    names = {entry.name for entry in (trained / "run").iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoints", "model.safetensors", "results.json", "report.html"} <= names
    results = json.loads((trained / "run" / "results.json").read_text())
    assert results["evaluation"]["validation"]["summary"]["dice"]["mean"] > 0.8
    assert results["prototype_spread"]["background"] > 0.1
    page = (trained / "run" / "report.html").read_text()
    assert page.count("data:image/png") == 6  # losses, their weight, spread, Dice, one case, its histogram
    split = json.loads((trained / "run" / "split.json").read_text())
    assert [len(split[part]) for part in ("labelled", "unlabelled", "validation", "test")] == [2, 4, 1, 2]
    checkpoint = torch.load(trained / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert checkpoint["running_centers"].shape == (2, 3, 8)
    assert any(name.startswith("teacher.") for name in checkpoint)
    model = load_file(trained / "run" / "model.safetensors")
    assert model["prototypes.centers"].shape == (2, 3, 8)


def test_evaluate_judges_the_runs_test_cases(trained, tmp_path, capsys):
    capsys.readouterr()
    words = ["evaluate", trained / "run", trained / "data", "--json", "--out", tmp_path / "e.csv", "--device", "cpu"]
    assert run(*words) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["cases"]) == 2
    counted = sum(sum(row.values()) for row in result["confusion"].values())
    assert counted == 2 * 18 * 14 * 16
    assert result["classes"]["ball"]["dice"] == result["summary"]["dice"]
    assert result["summary"]["dice"]["mean"] > 0.8
    row = result["cases"][0]
    assert {"jaccard", "asd_directed_mm", "assd_vox", "prototype_dice", "prototype_ce", "empty"} <= set(row)
    assert len((tmp_path / "e.csv").read_text().splitlines()) == 3
    assert "exists" in refused(capsys, *words)
    assert run("evaluate", trained / "run", trained / "data", "--split", "all") == 0
    text = capsys.readouterr().out
    assert "HD95 (mm)" in text
    assert "as background (%)" in text


def test_evaluate_measures_distances_in_voxels_and_in_millimetres(trained, tmp_path, capsys):
    """References four voxels off along the axis whose voxels measure 2.53 mm: Hausdorff distances in that ratio."""
    shutil.copytree(trained / "data", tmp_path / "data")
    for path in (tmp_path / "data" / "labels").iterdir():
        label = np.asarray(nib.load(path).dataobj)
        save(path, np.roll(label, 4, axis=2), OBLIQUE)
    capsys.readouterr()
    assert run("evaluate", trained / "run", tmp_path / "data", "--json", "--device", "cpu") == 0
    for row in json.loads(capsys.readouterr().out)["cases"]:
        assert row["dice"] < 0.7
        assert 2.5 <= row["hd95_vox"] <= 5
        assert row["hd95_mm"] == pytest.approx(np.linalg.norm(OBLIQUE[:3, 2]) * row["hd95_vox"], rel=0.15)


def test_predict_writes_in_the_space_of_the_input_and_survives_a_bad_volume(trained, tmp_path, capsys):
    inputs = tmp_path / "in"
    image, label = ball(50, (20, 13, 15))
    save(inputs / "good.nii.gz", image, OBLIQUE)
    flipped = nib.as_closest_canonical(nib.load(inputs / "good.nii.gz"))
    nib.save(flipped, inputs / "turned.nii.gz")
    save(inputs / "zero.nii.gz", np.zeros((16, 16, 16), np.float32))
    options = ["--probabilities", "--winners", "--prototype-map", "--device", "cpu"]
    capsys.readouterr()
    assert run("predict", trained / "run", inputs, tmp_path / "out", *options) == 1
    text = capsys.readouterr()
    assert "2 of 3" in text.out
    assert "zero.nii.gz: an image is constant" in text.err
    found = nib.load(tmp_path / "out" / "good.nii.gz")
    np.testing.assert_allclose(found.affine, OBLIQUE, atol=1e-5)
    values = np.asarray(found.dataobj)
    assert values.dtype == np.uint8
    assert 2 * (values & label).sum() / (values.sum() + label.sum()) > 0.75
    # The same scan in another orientation has the same segmentation, in its own orientation.
    turned = nib.as_closest_canonical(found)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "out" / "turned.nii.gz").dataobj), turned.dataobj)
    probabilities = nib.load(tmp_path / "out" / "good_probabilities.nii.gz")
    assert probabilities.shape == (20, 13, 15, 2)
    np.testing.assert_allclose(probabilities.get_fdata().sum(3), 1, atol=1e-4)
    winners = np.asarray(nib.load(tmp_path / "out" / "good_winners.nii.gz").dataobj)
    near = np.asarray(nib.load(tmp_path / "out" / "good_prototypes.nii.gz").dataobj)
    assert winners.min() >= 1
    assert winners.max() <= 6
    np.testing.assert_array_equal((winners - 1) // 3, near)
    assert "exists" in refused(capsys, "predict", trained / "run", inputs, tmp_path / "out")
    single = refused(capsys, "predict", trained / "run", inputs / "zero.nii.gz", tmp_path / "one")
    assert "constant" in single
    assert not (tmp_path / "one").exists()


def test_predict_goes_on_after_any_failure_of_one_volume(trained, tmp_path, capsys, monkeypatch):
    inputs = tmp_path / "in"
    for index in range(3):
        save(inputs / f"v{index}.nii.gz", ball(index)[0])
    real, calls = Segmenter.segment, []

    def segment(self, image, **options):
        calls.append(image)
        if len(calls) == 2:
            raise RuntimeError("CUDA out of memory\nsecond line")
        return real(self, image, **options)

    monkeypatch.setattr(Segmenter, "segment", segment)
    capsys.readouterr()
    assert run("predict", trained / "run", inputs, tmp_path / "out") == 1
    text = capsys.readouterr()
    assert "2 of 3" in text.out
    assert text.err.splitlines()[-1] == f"failed: {inputs / 'v1.nii.gz'}: CUDA out of memory"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"v0.nii.gz", "v2.nii.gz"}


def test_predict_never_overwrites_what_it_was_not_told_to(trained, tmp_path, capsys):
    inputs = tmp_path / "in"
    for name in ("a", "a_winners"):
        save(inputs / f"{name}.nii.gz", ball(0)[0])
    assert "one name" in refused(capsys, "predict", trained / "run", inputs, tmp_path / "out", "--winners")
    (inputs / "a_winners.nii.gz").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_winners.nii.gz").write_text("mine")
    assert "exists" in refused(capsys, "predict", trained / "run", inputs, tmp_path / "out", "--winners")
    assert (tmp_path / "out" / "a_winners.nii.gz").read_text() == "mine"
    assert "replace an input" in refused(capsys, "predict", trained / "run", inputs, inputs, "--overwrite")


def test_resampled_prediction_comes_back_to_the_inputs_grid(trained, tmp_path):
    words = ["train", trained / "data", tmp_path / "r", *TINY, "--steps", 2, "--spacing", 1.5, 1.5, 1.5]
    assert run(*words, "--method", "sup") == 0
    assert run("predict", tmp_path / "r", trained / "data" / "images" / "case0.nii.gz", tmp_path / "o") == 0
    found = nib.load(tmp_path / "o" / "case0.nii.gz")
    assert found.shape == (18, 14, 16)
    np.testing.assert_allclose(found.affine, OBLIQUE, atol=1e-5)
    case = trained / "data" / "images" / "case0.nii.gz"
    assert run("predict", tmp_path / "r", case, tmp_path / "b", "--batch-size", 4) == 0
    np.testing.assert_array_equal(nib.load(tmp_path / "b" / "case0.nii.gz").dataobj, found.dataobj)
    assert run("predict", tmp_path / "r", case, tmp_path / "c", "--batch-size", 0) == 2
    assert not (tmp_path / "c").exists()


def test_prototypes_and_compare(trained, tmp_path, capsys):
    volume = trained / "data" / "images" / "case0.nii.gz"
    capsys.readouterr()
    assert run("prototypes", trained / "run", volume, "--out", tmp_path / "w.nii.gz", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["map value"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert sum(row["share here"] for row in rows) == pytest.approx(1)
    assert rows[0]["intensity"] <= rows[1]["intensity"] <= rows[2]["intensity"]
    assert nib.load(tmp_path / "w.nii.gz").shape == (18, 14, 16)
    words = ["train", trained / "data", tmp_path / "sup", *TINY, "--steps", 2, "--method", "sup", "--test", 2]
    assert run(*words, "--validation", 1) == 0
    for folder in (trained / "run", tmp_path / "sup"):
        assert run("evaluate", folder, trained / "data") == 0
    capsys.readouterr()
    assert run("compare", trained / "run", tmp_path / "sup", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["cases"] == 2
    assert row["a - b"] == pytest.approx(row["mean a"] - row["mean b"])
    assert 0 <= row["p"] <= 1
    assert "unknown metric" in refused(capsys, "compare", trained / "run", tmp_path / "sup", "--metric", "beauty")
    assert "needs two" in refused(capsys, "compare", trained / "run")


def test_published_preset_trains(trained, tmp_path, capsys):
    words = ["train", trained / "data", tmp_path / "r", *TINY, "--steps", 3, "--preset", "paper-code"]
    assert run(*words, "--select", "test", "--test", 2) == 0
    assert "K > 1 has no effect, as published" in capsys.readouterr().err
    assert "BEST ON TEST CASES" in (tmp_path / "r" / "report.html").read_text()
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    assert max(results["prototype_spread"].values()) < 0.01


def test_prepare_crops_resamples_and_splits(trained, tmp_path, capsys):
    raw = tmp_path / "raw"
    shutil.copytree(trained / "data", raw)
    (raw / "dataset.json").unlink()
    words = ["prepare", raw, tmp_path / "la", "--task", "la", "--labelled", 2, "--test", 2, "--validation", 1]
    assert run(*words) == 0
    about = json.loads((tmp_path / "la" / "dataset.json").read_text())
    assert about["settings"]["patch"] == [112, 112, 80]
    data = read_cases(tmp_path / "la")
    assert {part: len(names) for part, names in data.lists.items()} == {
        "labelled": 2,
        "unlabelled": 4,
        "validation": 1,
        "test": 2,
    }
    assert data.classes == ("background", "left atrium")
    original = nib.load(raw / "images" / "case0.nii.gz")
    moved = nib.load(tmp_path / "la" / "images" / "case0.nii.gz")
    assert nib.aff2axcodes(moved.affine) == ("R", "A", "S")
    value = np.asarray(original.dataobj)[9, 7, 8]
    where = np.argwhere(np.asarray(moved.dataobj) == value)[0]
    np.testing.assert_allclose(moved.affine @ [*where, 1], original.affine @ [9, 7, 8, 1], atol=1e-3)
    assert "holds files" in refused(capsys, *words)
    assert "fewer labelled" in refused(capsys, *words[:2], tmp_path / "x", "--labelled", 20)
    assert not (tmp_path / "x").exists()
    assert run("train", tmp_path / "la", tmp_path / "r", *TINY, "--steps", 1) == 0


def test_prepare_merges_structures_where_told(trained, tmp_path, capsys):
    shutil.copytree(trained / "data", tmp_path / "raw")
    (tmp_path / "raw" / "dataset.json").unlink()
    for path in (tmp_path / "raw" / "labels").iterdir():
        save(path, np.asarray(nib.load(path).dataobj) * 255, OBLIQUE)
    words = ["prepare", tmp_path / "raw", tmp_path / "out", "--labelled", 2]
    assert "numbered without gaps" in refused(capsys, *words)
    assert not (tmp_path / "out").exists()
    assert run(*words, "--merge-labels") == 0
    assert read_cases(tmp_path / "out").classes == ("background", "structure")
    assert np.asarray(nib.load(tmp_path / "out" / "labels" / "case0.nii.gz").dataobj).max() == 1


def test_sample_data_are_simulated_volumes_with_labels(tmp_path, capsys):
    assert run("sample-data", tmp_path / "s", "--cases", 3, "--unlabelled", 1) == 0
    data = read_cases(tmp_path / "s")
    assert data.classes == ("background", "grey matter", "white matter")
    assert [case.label is None for case in data.cases.values()] == [False, False, True]
    assert "Simulated" in (tmp_path / "s" / "dataset.json").read_text()
    plan = DataPlan.resolve(DataOptions(), data, 8)
    assert plan.patch == (32, 32, 32)
    image, label = plan.load(data.cases["simulated_000"], labelled=True)
    means = [float(image[0][label == value].mean()) for value in range(3)]
    assert means == sorted(means)  # T1: background, grey, white
    shares = torch.bincount(label.flatten(), minlength=3) / label.numel()
    assert 0.05 < shares[2] < shares[1] < 0.4
    first = read_image(data.cases["simulated_000"].image)
    assert "already there" in refused(capsys, "sample-data", tmp_path / "s", "--cases", 3, "--unlabelled", 1)
    assert run("sample-data", tmp_path / "s", "--cases", 1, "--unlabelled", 0, "--overwrite") == 0
    assert torch.equal(read_image(data.cases["simulated_000"].image).as_tensor(), first.as_tensor())


def test_bad_input_is_refused_and_leaves_nothing(trained, tmp_path, capsys):
    out = tmp_path / "out"

    def changed(change):
        folder = tmp_path / f"data{len(list(tmp_path.iterdir()))}"
        shutil.copytree(trained / "data", folder)
        change(folder)
        return refused(capsys, "train", folder, out, *TINY, "--steps", 1, "--test", 0, "--validation", 0)

    def relabel(array, affine=OBLIQUE):
        return lambda folder: [save(folder / "labels" / f"case{i}.nii.gz", array, affine) for i in range(6)]

    def recommend(**settings):
        return lambda folder: (folder / "dataset.json").write_text(json.dumps({"settings": settings}))

    label = ball(0)[1]
    assert "numbered without gaps" in changed(lambda f: (relabel(label * 255)(f), (f / "dataset.json").unlink()))
    assert "dataset.json, settings (--scaling)" in changed(recommend(scaling="loud"))
    assert "dataset.json, settings (--augment)" in changed(recommend(augment="mirror"))
    assert "differ in shape" in changed(relabel(label[:-1]))
    assert "no class" in changed(relabel(label * 2))
    assert "differ in spacing" in changed(relabel(label, np.eye(4)))
    nan = ball(0)[0]
    nan[0, 0, 0] = np.nan
    assert "NaN" in changed(lambda f: [save(f / "images" / f"case{i}.nii.gz", nan, OBLIQUE) for i in range(9)])
    zero = np.zeros_like(nan)
    assert "constant" in changed(lambda f: [save(f / "images" / f"case{i}.nii.gz", zero, OBLIQUE) for i in range(9)])
    assert "no labelled case" in changed(lambda f: shutil.rmtree(f / "labels"))
    assert "no image" in changed(lambda f: (f / "images" / "case1.nii.gz").unlink())
    four = np.stack([ball(0)[0]] * 2, -1)
    assert "not three-dimensional" in changed(
        lambda f: [save(f / "images" / f"case{i}.nii.gz", four, OBLIQUE) for i in range(9)]
    )
    data = trained / "data"
    net = ["--network.width", 4, "--network.downsamplings", 2, "--labelled", 2]
    assert "does not fit the network" in refused(capsys, "train", data, out, *net, "--patch", 16, 16, 6)
    assert "does not fit the network" in refused(capsys, "train", data, out, *net, "--patch", 4, 4, 4)
    assert "multiples of 16" in refused(capsys, "train", data, out, "--network.downsamplings", 4, "--patch", 8, 16, 16)
    assert "at least one prototype" in refused(capsys, "train", data, out, *TINY, "--k", 0)
    assert "one prototype a class" in refused(capsys, "train", data, out, *TINY, "--k", 3, "--method", "upcol")
    far = ["--patch", 16, 12, 16, "--stride", 99, 1, 1]
    assert "between 1 and the patch" in refused(capsys, "train", data, out, *net, *far)
    rotated = ["--augment", "flip-rotate"]
    assert "rotation needs equal" in refused(capsys, "train", data, out, *TINY, *rotated)
    assert "no test cases" in refused(capsys, "train", data, out, *TINY, "--test", 0, "--select", "test")
    assert "fewer labelled" in refused(capsys, "train", data, out, *net[:4], "--labelled", 7, *far[:4])
    assert "--ratio" in refused(capsys, "train", data, out, *TINY, "--ratio", 0)
    assert "spacing" in refused(capsys, "train", data, out, *TINY, "--spacing", 1, 1, 0)
    assert "missing" in refused(capsys, "train", tmp_path / "nothing", out, *TINY)
    assert "already holds a run" in refused(capsys, "train", data, trained / "run", *TINY)
    assert "--device" in refused(capsys, "evaluate", trained / "run", data, "--device", "warp")
    assert "holds no model" in refused(capsys, "evaluate", tmp_path, data)
    assert not out.exists()


def test_a_method_that_needs_unlabelled_cases_says_so(tmp_path, capsys):
    data = dataset(tmp_path / "d", count=2, unlabelled=0)
    words = ["train", data, tmp_path / "o", *TINY, "--steps", 1, "--test", 0, "--validation", 0]
    assert "needs unlabelled cases" in refused(capsys, *words)
    assert run(*words, "--method", "sup", "--overwrite") == 0


def test_truncated_volumes_are_named(trained, tmp_path, capsys):
    path = tmp_path / "cut.nii.gz"
    whole = (trained / "data" / "images" / "case0.nii.gz").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cut.nii.gz" in refused(capsys, "predict", trained / "run", path, tmp_path / "o")


def test_corrupt_weights_are_refused(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "r")
    path = tmp_path / "r" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    with pytest.raises(InputError, match="corrupt"):
        Segmenter.load(tmp_path / "r")


def test_help_needs_neither_torch_nor_monai():
    code = (
        "import sys; from cl_medical.cli import app; app.run(['--help']); app.run(['mpcl', '--help']); "
        "assert not {'torch', 'monai', 'nibabel'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "sample-data" in done.stdout


def test_the_plan_is_printed_recorded_and_every_item_can_be_given(trained, tmp_path, capsys):
    capsys.readouterr()
    data = trained / "data"
    assert run("train", data, tmp_path / "out", "--labelled", 2, "--test", 2, "--validation", 1, "--dry-run") == 0
    text = capsys.readouterr().out
    assert re.search(r"^patch +18 x 14 x 16 +the volumes$", text, re.MULTILINE)
    assert re.search(r"^network.downsamplings +1 +the patch$", text, re.MULTILINE)
    assert re.search(r"^batch_size +2 +the patch$", text, re.MULTILINE)
    assert re.search(r"^classes +background, ball +dataset.json$", text, re.MULTILINE)
    assert not (tmp_path / "out").exists()
    recorded = json.loads((trained / "run" / "plan.json").read_text())
    assert recorded["patch"] == [16, 12, 16]
    assert (recorded["network.downsamplings"], recorded["batch_size"], recorded["steps"]) == (2, 1, 50)
    given = ["--patch", 8, 8, 16, "--batch-size", 3, "--network.downsamplings", 1, "--stride", 1, 2, 3, "--steps", 7]
    assert run("train", data, tmp_path / "out", "--labelled", 2, *given, "--dry-run") == 0
    text = capsys.readouterr().out
    for name, value in (("patch", "8 x 8 x 16"), ("batch_size", 3), ("network.downsamplings", 1), ("steps", 7)):
        assert re.search(rf"^{name} +{value} +option$", text, re.MULTILINE)


def test_a_run_is_not_resumed_on_other_data(tmp_path, capsys):
    data = dataset(tmp_path / "data", count=4, unlabelled=1)
    words = ["train", data, tmp_path / "run", *TINY, "--method", "sup", "--steps", 2, "--test", 0, "--validation", 0]
    assert run(*words) == 0
    save(data / "images" / "more.nii.gz", ball(20)[0], OBLIQUE)
    assert "data are not those the run was started with" in refused(capsys, *words, "--resume")


def test_inspect_counts_and_names_what_would_be_refused(trained, tmp_path, capsys):
    shutil.copytree(trained / "data", tmp_path / "data")
    save(tmp_path / "data" / "labels" / "case1.nii.gz", ball(1, (18, 14, 15))[1], OBLIQUE)
    capsys.readouterr()
    assert run("inspect", tmp_path / "data", "--json") == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["summary"]["cases"] == 9
    assert findings["summary"]["with label map"] == 6
    assert findings["summary"]["voxels, median"] == "18 x 14 x 16"
    (row,) = findings["refused"]
    assert row["case"] == "case1"
    assert "differ in shape" in row["why"]
    assert [(row["name"], row["cases"]) for row in findings["classes"]] == [("background", 5), ("ball", 5)]
    assert sum(row["share (%)"] for row in findings["classes"]) == pytest.approx(100)
    assert run("inspect", tmp_path / "data") == 0
    assert "differ in shape" in capsys.readouterr().out


def test_voxels_that_do_not_count_go_through_every_verb(trained, tmp_path, capsys):
    """nnU-Net's ignore: it is no class of the segmenter, and what is predicted there changes no score."""
    shutil.copytree(trained / "data", tmp_path / "raw")
    for path in (tmp_path / "raw" / "labels").iterdir():
        values = np.asarray(nib.load(path).dataobj).copy()
        values[:, :, :6] = 2
        save(path, values, OBLIQUE)
    about = {"labels": {"background": 0, "ball": 1, "ignore": 2}}
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps(about))
    assert run("prepare", tmp_path / "raw", tmp_path / "data", "--labelled", 2, "--test", 2) == 0
    assert read_cases(tmp_path / "data").ignore == 2
    words = ["train", tmp_path / "data", tmp_path / "run", *TINY, "--steps", 2, "--spacing", 1.5, 1.5, 1.5]
    assert run(*words) == 0
    assert json.loads((tmp_path / "run" / "model.json").read_text())["data"]["classes"] == ["background", "ball"]
    capsys.readouterr()
    assert run("evaluate", tmp_path / "run", tmp_path / "data", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    counted = sum(sum(row.values()) for row in result["confusion"].values())
    assert counted == 2 * 18 * 14 * 10
    assert all(np.isfinite(row["prototype_ce"]) for row in result["cases"])


def test_predict_names_volumes_in_folders_of_their_own(trained, tmp_path, capsys):
    save(tmp_path / "in" / "a.nii.gz", ball(0)[0])
    save(tmp_path / "in" / "x.nii.gz", ball(1)[0]).rename(tmp_path / "in" / "UPPER.NII.GZ")
    series(tmp_path / "in" / "patient 1" / "SE1")
    capsys.readouterr()
    assert run("predict", trained / "run", tmp_path / "in", tmp_path / "out", "--device", "cpu") == 0
    assert "3 of 3 volumes segmented" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a.nii.gz", "UPPER.nii.gz", "patient 1_SE1.nii.gz"}
    scan = read_image(tmp_path / "in" / "patient 1" / "SE1")
    other = SimpleITK.ReadImage(str(tmp_path / "out" / "patient 1_SE1.nii.gz"))
    theirs = np.array(other.TransformIndexToPhysicalPoint((5, 3, 4))) * [-1, -1, 1]
    np.testing.assert_allclose(theirs, (np.asarray(scan.affine) @ [5, 3, 4, 1])[:3], atol=1e-3)


def test_anonymised_series_of_one_patient_id_can_be_prepared(tmp_path, capsys):
    for index in range(4):
        series(tmp_path / "raw" / "images" / f"s{index}")
        scan = read_image(tmp_path / "raw" / "images" / f"s{index}")
        write_nifti(tmp_path / "raw" / "labels" / f"s{index}.nii.gz", (scan.numpy()[0] > 0).astype(np.uint8), scan)
    assert run("prepare", tmp_path / "raw", tmp_path / "out", "--labelled", 2, "--test", 1) == 0
    assert "note: all 4 cases name the patient 'patient-7'" in capsys.readouterr().err
    assert len({case.patient for case in read_cases(tmp_path / "out").cases.values()}) == 4
