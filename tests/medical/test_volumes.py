"""Cases and splits of a folder, windows, metrics."""

import json
import math

import h5py
import numpy as np
import pytest
import torch
from cl_medical.volumes import (
    DataOptions,
    DataPlan,
    Split,
    SplitSettings,
    case_metrics,
    confusion,
    dice,
    find_volumes,
    jaccard,
    largest_component,
    make_split,
    read_cases,
    read_image,
    read_label,
    read_pair,
    slide,
    surface_distances,
)
from cl_medical.volumes.plan import plan_depth, plan_patch
from contrastive_core.errors import ContrastiveWarning, InputError

from tests.medical.conftest import image, label, pairs, save, series


def test_cases_without_label_file_are_unlabelled(tmp_path):
    data = read_cases(pairs(tmp_path))
    assert len(data.cases) == 10
    split = make_split(data, SplitSettings(labelled=3, validation=1, test=2, split_seed=0))
    assert [len(part) for part in (split.labelled, split.unlabelled, split.validation, split.test)] == [3, 4, 1, 2]
    assert {"c8", "c9"} <= set(split.unlabelled)
    assert make_split(data, SplitSettings(labelled=3, validation=1, test=2, split_seed=0)) == split
    assert make_split(data, SplitSettings(labelled=3, validation=1, test=2, split_seed=1)) != split
    with pytest.raises(InputError, match="fewer labelled cases"):
        make_split(data, SplitSettings(labelled=8, split_seed=0))
    with pytest.raises(InputError, match="needs a labelled case"):
        make_split(data, SplitSettings(labelled=0))


def test_lists_fix_the_parts_they_name_and_no_others(tmp_path):
    pairs(tmp_path)
    (tmp_path / "train_unlab.txt").write_text("c0\nc1\n")
    split = make_split(read_cases(tmp_path), SplitSettings(labelled=2, validation=1, test=2))
    assert {"c0", "c1", "c8", "c9"} <= set(split.unlabelled)
    assert [len(part) for part in (split.labelled, split.validation, split.test)] == [2, 1, 2]
    (tmp_path / "train_lab.txt").write_text("c2\nc3\nc4\nc5\n")
    data = read_cases(tmp_path)
    assert make_split(data, SplitSettings(labelled=2)) == Split(("c2", "c3"), ("c4", "c5", "c0", "c1"), (), ())
    assert make_split(data, SplitSettings(labelled=2, validation=1)) == Split(
        ("c2", "c3"), ("c4", "c0", "c1"), ("c5",), ()
    )
    with pytest.raises(InputError, match="fewer labelled"):
        make_split(data, SplitSettings(labelled=3, validation=2))
    with pytest.raises(InputError, match=r"(?s)lists fix this part.*--test.*train_lab"):
        make_split(data, SplitSettings(labelled=2, test=1))
    (tmp_path / "val.txt").write_text("c6\n")
    with pytest.raises(InputError, match=r"(?s)lists fix this part.*--validation.*val\.txt"):
        make_split(read_cases(tmp_path), SplitSettings(labelled=2, validation=1))
    (tmp_path / "val.txt").write_text("c9\n")
    with pytest.raises(InputError, match=r"(?s)validation case has no label.*c9"):
        make_split(read_cases(tmp_path), SplitSettings(labelled=2))


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        '{"patients": ["c0"]}',
        '{"settings": 3}',
        '{"labels": 3}',
        '{"labels": {"0": "a", "2": "b"}}',
        '{"labels": {"background": 0, "thing": "x"}}',
        "{",
    ],
)
def test_malformed_descriptions_are_refused(tmp_path, text):
    pairs(tmp_path)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=r"dataset\.json"):
        read_cases(tmp_path)


def test_classes_may_be_numbered_by_value_or_by_name(tmp_path):
    pairs(tmp_path)
    for labels in ({"0": "nothing", "1": "thing"}, {"nothing": 0, "thing": 1}, ["nothing", "thing"]):
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
        assert read_cases(tmp_path).classes == ("nothing", "thing")


def test_no_labelled_case_at_all(tmp_path):
    data = read_cases(pairs(tmp_path, unlabelled=10))
    with pytest.raises(InputError, match="no labelled case"):
        make_split(data, SplitSettings(labelled=1))


def test_a_label_without_its_image_is_refused(tmp_path):
    pairs(tmp_path)
    (tmp_path / "images" / "c3.nii.gz").unlink()
    with pytest.raises(InputError, match=r"(?s)no image.*c3"):
        read_cases(tmp_path)
    with pytest.raises(InputError, match="no images/ beside labels/"):
        read_cases(tmp_path / "labels")


def test_patients_stay_in_one_part(tmp_path):
    pairs(tmp_path, count=10, unlabelled=0)
    about = {"labels": {"0": "background", "1": "thing"}, "patients": {f"c{i}": f"p{i // 2}" for i in range(10)}}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    data = read_cases(tmp_path)
    assert data.classes == ("background", "thing")
    split = make_split(data, SplitSettings(labelled=2, validation=2, test=2, split_seed=3))
    for part in (split.labelled, split.validation, split.test):
        assert len({data.cases[name].patient for name in part}) == 1
    (tmp_path / "train_lab.txt").write_text("c0\nc2\n")
    (tmp_path / "test.txt").write_text("c1\n")
    with pytest.raises(InputError, match="patient stands in two splits"):
        make_split(read_cases(tmp_path), SplitSettings(labelled=2))
    (tmp_path / "test.txt").write_text("c2\n")
    with pytest.raises(InputError, match="two splits"):
        make_split(read_cases(tmp_path), SplitSettings(labelled=2))
    (tmp_path / "test.txt").write_text("c99\n")
    with pytest.raises(InputError, match="not there"):
        read_cases(tmp_path)


@pytest.mark.parametrize("nested", [True, False])
def test_published_hdf5_layouts_with_their_lists(tmp_path, nested):
    for index in range(6):
        path = tmp_path / f"P{index}" / "mri_norm2.h5" if nested else tmp_path / f"P{index}.h5"
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file:
            file["image"] = image(seed=index)
            if index != 5:
                file["label"] = label()
    lists = {"train_lab": [0, 1], "train_unlab": [2, 5], "test": [3, 4]}
    for name, cases in lists.items():
        (tmp_path / f"{name}.txt").write_text("".join(f"P{i}{'' if nested else '.h5'}\n" for i in cases))
    data = read_cases(tmp_path)
    split = make_split(data, SplitSettings(labelled=1))
    assert split == Split(("P0",), ("P1", "P2", "P5"), (), ("P3", "P4"))
    assert data.settings == {"scaling": "none"}  # published scaled
    assert find_volumes(tmp_path) == {name: case.image for name, case in data.cases.items()}
    x, y = read_pair(data.cases["P0"].image, data.cases["P0"].label, 2)
    np.testing.assert_array_equal(x.numpy()[0], image(seed=0))
    assert y.dtype == torch.int64
    with pytest.raises(InputError, match="no dataset `label`"):
        read_label(data.cases["P5"].image)
    with pytest.raises(InputError, match="fewer labelled"):
        make_split(data, SplitSettings(labelled=3))


def test_volumes_of_a_folder(tmp_path):
    save(tmp_path / "b.nii", image())
    save(tmp_path / "a.nii.gz", image())
    series(tmp_path / "scan")
    (tmp_path / "notes.txt").write_text("x")
    assert {name: path.name for name, path in find_volumes(tmp_path).items()} == {
        "a": "a.nii.gz",
        "b": "b.nii",
        "scan": "scan",
    }
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no volume"):
        find_volumes(tmp_path / "none")


def test_one_window_is_one_forward_pass():
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 3, 3, padding=1)
    volume = torch.rand(1, 8, 8, 8)
    with torch.no_grad():
        ((start, slab),) = list(slide(volume, network, patch=(8, 8, 8), stride=(3, 3, 3)))
        assert start == 0
        assert torch.equal(slab, network(volume[None])[0])


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 14, 11), (23, 8, 10), (5, 12, 3), (3, 3, 3)])
@pytest.mark.parametrize("batch", [1, 3])
def test_slabs_equal_the_average_over_all_windows(shape, batch):
    torch.manual_seed(0)
    calls = []

    def network(x):
        calls.append(len(x))
        return torch.cat([x.cumsum(2), x.square().cumsum(4)], 1)

    volume = torch.rand(1, *shape, dtype=torch.float64)
    patch, stride = (8, 8, 8), (5, 3, 4)
    slabs = list(slide(volume, network, patch=patch, stride=stride, batch=batch))
    ours = torch.cat([slab for _, slab in slabs], 1)
    assert [start for start, _ in slabs] == np.cumsum([0, *[s.shape[1] for _, s in slabs]])[:-1].tolist()
    padding = [(max(8 - side, 0) // 2, max(8 - side, 0) - max(8 - side, 0) // 2) for side in shape]
    padded = torch.nn.functional.pad(volume, [n for pair in reversed(padding) for n in pair])
    total, count, windows = torch.zeros(2, *padded.shape[1:], dtype=torch.float64), torch.zeros(padded.shape[1:]), 0
    starts = [sorted({min(i, side - 8) for i in range(0, side, s)}) for side, s in zip(padded.shape[1:], stride)]
    for i in starts[0]:
        for j in starts[1]:
            for k in starts[2]:
                where = (slice(i, i + 8), slice(j, j + 8), slice(k, k + 8))
                part = padded[(slice(None), *where)][None]
                total[(slice(None), *where)] += torch.cat([part.cumsum(2), part.square().cumsum(4)], 1)[0]
                count[where] += 1
                windows += 1
    cut = [slice(before, before + side) for (before, _), side in zip(padding, shape)]
    torch.testing.assert_close(ours, (total / count)[(slice(None), *cut)])
    assert sum(calls) == windows
    assert max(calls) <= batch
    assert max(calls) - min(calls) <= 1  # a slab's windows are divided evenly


def test_prediction_holds_one_slab_of_classes_only():
    """Whatever the length of the volume, no tensor larger than a slab of all classes is made."""
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() != volume.untyped_storage().nbytes():
                sizes.append(out.untyped_storage().nbytes())
            return out

    volume, classes = torch.rand(1, 160, 16, 16), 12
    found = torch.empty(volume.shape[1:], dtype=torch.uint8)
    with Watch():
        for start, slab in slide(volume, lambda x: x.expand(-1, classes, -1, -1, -1), patch=(16,) * 3, stride=(8,) * 3):
            found[start : start + slab.shape[1]] = slab.argmax(0)
    slab_bytes = classes * 16 * 16 * 16 * 4
    assert max(sizes) <= slab_bytes
    assert slab_bytes < classes * volume.numel() * 4 / 9


@pytest.mark.parametrize("stride", [(0, 4, 4), (9, 4, 4)])
def test_strides_out_of_range(stride):
    with pytest.raises(InputError, match="--stride"):
        list(slide(torch.rand(1, 8, 8, 8), lambda x: x, patch=(8, 8, 8), stride=stride))


def test_overlap_and_distances_of_boxes():
    a, b = np.zeros((20, 20, 20), bool), np.zeros((20, 20, 20), bool)
    a[5:10, 5:10, 5:10] = True
    b[7:12, 5:10, 5:10] = True
    assert dice(a, b) == pytest.approx(0.6)
    assert jaccard(a, b) == pytest.approx(3 / 7)
    voxels = surface_distances(a, b)
    assert voxels.hd95 == voxels.hd95_max == 2
    metres = surface_distances(a, b, (3.0, 3.0, 3.0))
    assert metres.hd95 == 6
    assert metres.assd == pytest.approx(3 * voxels.assd)
    same = surface_distances(a, a)
    assert (same.hd95, same.assd) == (0, 0)


def test_distances_agree_with_monai_and_with_their_definition():
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    rng = np.random.default_rng(0)
    a, b = (np.pad(rng.random((9, 8, 7)) > 0.6, 2) for _ in range(2))
    ours = surface_distances(a, b, (1.0, 1.5, 2.0))
    tensors = [torch.from_numpy(x[None, None].astype(np.float32)) for x in (a, b)]
    options = {"include_background": True, "spacing": [1.0, 1.5, 2.0]}
    hd = compute_hausdorff_distance(*tensors, percentile=95, **options)
    assert ours.hd95_max == pytest.approx(float(hd), abs=1e-5)
    directed = [float(compute_average_surface_distance(*pair, **options)) for pair in (tensors, tensors[::-1])]
    assert ours.asd_directed == pytest.approx(directed[0], abs=1e-5)
    assert min(directed) <= ours.assd <= max(directed)
    assert ours.hd95 <= ours.hd95_max


def test_empty_masks_are_flagged_and_measured_by_the_diagonal():
    full = np.zeros((3, 4, 12), np.uint8)
    full[1, 1, 1] = 1
    (row,) = case_metrics(np.zeros_like(full), full, ("background", "thing"), (1.0, 1.0, 2.0))
    assert row["empty"]
    assert row["dice"] == row["jaccard"] == 0
    assert row["hd95_vox"] == pytest.approx(13)
    assert row["hd95_mm"] == pytest.approx(math.dist((0, 0, 0), (3, 4, 24)))
    (row,) = case_metrics(np.zeros_like(full), np.zeros_like(full), ("background", "thing"), (1.0, 1.0, 1.0))
    assert (row["dice"], row["hd95_mm"], row["empty"]) == (1.0, 0.0, True)


def test_largest_component_of_every_structure():
    labels = np.zeros((9, 5, 5), np.uint8)
    labels[0:3] = 1
    labels[6, 0, 0] = 1
    labels[4, 1, 1] = 2
    kept = largest_component(labels, 3)
    assert kept[6, 0, 0] == 0
    assert kept[4, 1, 1] == 2
    assert (kept[0:3] == 1).all()
    corner = np.zeros((4, 4, 4), np.uint8)
    corner[0, 0, 0] = corner[1, 1, 1] = corner[3, 3, 3] = 1
    assert largest_component(corner, 2).sum() == 2  # corners touch, as in the published code
    assert (largest_component(np.zeros_like(labels), 3) == 0).all()


def test_voxels_that_do_not_count_are_left_out_of_every_metric():
    prediction, reference = np.zeros((6, 6, 6), np.int16), np.zeros((6, 6, 6), np.int16)
    prediction[1:5], reference[1:3] = 1, 1
    reference[3:] = -1
    (row,) = case_metrics(prediction, reference, ("background", "thing"), (1.0, 1.0, 1.0))
    assert (row["dice"], row["hd95_vox"], row["empty"]) == (1.0, 0.0, False)
    assert confusion(prediction, reference, 2).tolist() == [[36, 0], [0, 72]]


class TestNames:
    @pytest.mark.parametrize("name", ["patient 1", "Zoë", "a\u200db", "007", "x.y", "1_1"])
    def test_are_kept_as_written(self, tmp_path, name):
        for index, each in enumerate((name, "other", "third")):
            save(tmp_path / "images" / f"{each}.nii.gz", image(seed=index))
            save(tmp_path / "labels" / f"{each}.NII.GZ", label())
        (tmp_path / "train_lab.txt").write_bytes(("\ufeff" + name + "\r\nother\r\n").encode())
        data = read_cases(tmp_path)
        assert set(data.cases) == {name, "other", "third"}
        assert make_split(data, SplitSettings(labelled=1)).labelled == (name,)

    def test_composed_and_decomposed_are_one(self, tmp_path):
        save(tmp_path / "images" / "Zoe\u0308.nii.gz", image())
        save(tmp_path / "labels" / "Zo\u00eb.nii.gz", label())
        (tmp_path / "train_lab.txt").write_text("Zoe\u0308\n", encoding="utf-8")
        (case,) = read_cases(tmp_path).cases.values()
        assert case.name == "Zo\u00eb"
        assert case.label is not None

    @pytest.mark.parametrize("name", [" a", "a\n b", "a\u2028b"])
    def test_that_a_list_could_not_hold_are_refused(self, tmp_path, name):
        save(tmp_path / "images" / f"{name}.nii.gz", image())
        with pytest.raises(InputError, match="cannot have this name"):
            read_cases(tmp_path)


class TestEntries:
    def test_of_every_depth_and_letter_case_are_found(self, tmp_path):
        save(tmp_path / "low.nii.gz", image())
        save(tmp_path / "x.nii.gz", image()).rename(tmp_path / "UPPER.NII.GZ")
        series(tmp_path / "patient 1" / "SE1")
        series(tmp_path / "patient 2" / "SE1")
        (tmp_path / "link.nii").symlink_to(tmp_path / "low.nii.gz")
        found = find_volumes(tmp_path)
        assert set(found) == {"low", "UPPER", "patient 1_SE1", "patient 2_SE1", "link"}
        assert all(read_image(path).ndim == 4 for name, path in found.items() if name != "link")

    def test_that_are_no_volumes_are_named(self, tmp_path):
        save(tmp_path / "images" / "a.nii.gz", image())
        (tmp_path / "images" / "b.nrrd").write_bytes(b"")
        (tmp_path / "images" / "README.md").write_text("")
        with pytest.warns(ContrastiveWarning, match=r"passed over: b\.nrrd$"):
            read_cases(tmp_path)

    def test_that_are_one_case_twice_are_refused(self, tmp_path):
        save(tmp_path / "images" / "a.nii.gz", image())
        save(tmp_path / "images" / "a.nii", image())
        with pytest.raises(InputError, match="two volumes have one name"):
            read_cases(tmp_path)

    def test_broken_and_circular_links_are_refused(self, tmp_path):
        save(tmp_path / "images" / "a.nii.gz", image())
        link = tmp_path / "images" / "b.nii.gz"
        link.symlink_to(tmp_path / "gone.nii.gz")
        with pytest.raises(InputError, match=r"(?s)leads nowhere.*b\.nii\.gz"):
            read_cases(tmp_path)
        link.unlink()
        (tmp_path / "images" / "loop").symlink_to(tmp_path / "images")
        with pytest.raises(InputError, match="leads back"):
            read_cases(tmp_path)

    def test_slices_beside_volumes_are_refused(self, tmp_path):
        series(tmp_path / "in")
        save(tmp_path / "in" / "a.nii.gz", image())
        with pytest.raises(InputError, match="beside other volumes"):
            find_volumes(tmp_path / "in")


class TestLayouts:
    def test_nnunets_channels_test_folders_and_ignore(self, tmp_path):
        for part, names in {"Tr": ("a", "b", "c"), "Ts": ("d",)}.items():
            for name in names:
                values = label()
                values[0] = 2
                save(tmp_path / f"images{part}" / f"{name}_0000.nii.gz", image(seed=ord(name)))
                save(tmp_path / f"labels{part}" / f"{name}.nii.gz", values)
        about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1, "ignore": 2}}
        (tmp_path / "dataset.json").write_text(json.dumps(about))
        data = read_cases(tmp_path)
        assert (data.classes, data.ignore) == (("background", "organ"), 2)
        split = make_split(data, SplitSettings(labelled=3, validation=0))
        assert sorted(split.labelled) == ["a", "b", "c"]
        assert split.test == ("d",)
        plan = DataPlan.resolve(DataOptions(patch=(4, 4, 4)), data)
        _, target = plan.load(data.cases["a"], labelled=True)
        assert target.unique().tolist() == [-1, 0, 1]
        assert (target[0] == -1).all()
        merged = DataPlan.resolve(DataOptions(patch=(4, 4, 4), merge_labels=True), data)
        assert merged.load(data.cases["a"], labelled=True)[1].unique().tolist() == [-1, 0, 1]

    @pytest.mark.parametrize(
        ("file", "words"),
        [("Train.txt", "unknown name"), ("folds.txt", "unknown name"), ("valid.txt", "two lists")],
    )
    def test_lists_of_unknown_names_are_refused(self, tmp_path, file, words):
        pairs(tmp_path)
        (tmp_path / "VAL.txt").write_text("c0\n")
        assert read_cases(tmp_path).lists == {"validation": ["c0"]}
        (tmp_path / file).write_text("c1\n")
        with pytest.raises(InputError, match=words):
            read_cases(tmp_path)

    @pytest.mark.parametrize(
        ("about", "words"),
        [
            ({"patients": {"c99": "p"}}, "not there"),
            ({"patients": {"c0": None}}, "patient's id"),
            ({"patients": {"c0": ["p"]}}, "patient's id"),
            ({"labels": ["a", "a"]}, "malformed"),
            ({"labels": ["a", ""]}, "malformed"),
            ({"labels": {"whole": [1, 2], "background": 0}}, "malformed"),
            ({"labels": {"background": 0, "ignore": 1, "organ": 3}}, "not numbered"),
            ({"settings": {"pach": [1, 2, 3]}}, "unknown setting"),
            ({"channel_names": {"0": "T1", "1": "T2"}}, "several channels"),
        ],
    )
    def test_descriptions_that_would_be_misread_are_refused(self, tmp_path, about, words):
        pairs(tmp_path)
        (tmp_path / "dataset.json").write_text(json.dumps(about))
        with pytest.raises(InputError, match=words):
            read_cases(tmp_path)

    def test_a_patient_numbered_0_is_a_patient(self, tmp_path):
        pairs(tmp_path)
        (tmp_path / "dataset.json").write_text(json.dumps({"patients": {"c0": 0, "c1": "0", "c2": "007"}}))
        cases = read_cases(tmp_path).cases
        assert [cases[f"c{i}"].patient for i in range(4)] == ["0", "0", "007", "c3"]

    @pytest.mark.parametrize("value", ["false", 0, [1]])
    def test_recommended_settings_keep_their_type(self, tmp_path, value):
        pairs(tmp_path)
        about = {"settings": {"largest_component": value, "patch": [4, 4, 4]}}
        (tmp_path / "dataset.json").write_text(json.dumps(about))
        with pytest.raises(InputError, match=r"settings \(--largest-component\)"):
            DataPlan.resolve(DataOptions(), read_cases(tmp_path))


class TestPlan:
    def test_follows_the_median_volume_on_the_networks_grid(self, tmp_path):
        turned = np.array([[0, 0, 2.0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])
        for index, shape in enumerate([(35, 51, 30), (35, 51, 35), (34, 50, 40)]):
            save(tmp_path / "images" / f"c{index}.nii.gz", image(shape), turned)
            save(tmp_path / "labels" / f"c{index}.nii.gz", label(shape), turned)
        data = read_cases(tmp_path)
        plan = DataPlan.resolve(DataOptions(), data)
        assert plan.patch == (32, 32, 48)  # the file's axes are y, z, x
        assert plan.stride == (16, 16, 24)
        assert plan_depth(plan.patch) == 3
        assert DataPlan.resolve(DataOptions(spacing=(2.0, 2.0, 2.0)), data).patch == (36, 16, 24)
        assert DataPlan.resolve(DataOptions(patch=(8, 8, 16), stride=(1, 2, 3)), data).stride == (1, 2, 3)
        assert DataPlan.resolve(DataOptions(), data, divisor=16).patch == (32, 32, 48)

    def test_stays_below_the_published_number_of_voxels_and_equally_long_in_millimetres(self):
        patch = plan_patch((512, 512, 120), (0.7, 0.7, 2.5))
        assert math.prod(patch) <= 1.05 * 96**3
        assert patch[0] * 0.7 == pytest.approx(patch[2] * 2.5, rel=0.1)
        assert plan_patch((300, 300, 300), (1.0, 1.0, 1.0)) == (96, 96, 96)
        assert plan_patch((9, 9, 9), (1.0, 1.0, 1.0)) == (8, 8, 8)
