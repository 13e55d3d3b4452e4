"""Images of every kind a folder, archive or array may hold, and what is refused."""

import io
import os
import pickle
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cl_foundations.images import (
    ViewSettings,
    has_parts,
    image_set,
    random_view,
    read_images,
    read_parts,
    write_samples,
)
from cl_foundations.images.corruptions import CORRUPTIONS, SEVERITIES, corrupt, uniform_noise
from cl_foundations.images.views import gaussian_blur
from contrastive_core.errors import ContrastiveWarning, InputError
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import binary, data, integers, lists, sampled_from, tuples
from PIL import Image


def rng(seed=0):
    return np.random.default_rng(seed)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(array)).save(path, **options)
    return path


def color(seed=0, h=20, w=20):
    return rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    for index, name in enumerate(("cat", "dog", "cat", "dog", "cat")):
        save(tmp_path / "set" / name / f"{index}.png", color(index))
    return tmp_path / "set"


def test_class_folders_give_labels(folder):
    images = read_images(folder, 20)
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [0, 0, 0, 1, 1]
    assert images.ids[0] == "cat/0.png"
    assert np.array_equal(images[0][0].permute(1, 2, 0).numpy(), color(0))
    assert images[3][1] == 1
    assert not has_parts(folder)
    taken = images.take([4, 0])
    assert taken.ids == ("dog/3.png", "cat/0.png")
    assert taken.labels.tolist() == [1, 0]


def test_a_flat_folder_has_no_labels(tmp_path):
    save(tmp_path / "a.png", color())
    save(tmp_path / "b.JPG", color(1), format="JPEG")
    (tmp_path / "notes.txt").write_text("no image")
    save(tmp_path / ".hidden.png", color())
    images = read_images(tmp_path, 20)
    assert images.ids == ("a.png", "b.JPG")
    assert images.labels is None
    assert images[0][1] == -1
    with pytest.raises(InputError, match="needs labels"):
        images.labelled("evaluation")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("train", "test"),
        ("train", "val"),
        ("train", "validation"),
        ("Train", "Test"),
        ("TRAINING", "Testing"),
        ("train_set", "test-set"),
        ("Training Images", "Validation Images"),
    ],
)
def test_parts_are_found_and_share_their_classes(tmp_path, first, second):
    save(tmp_path / first / "b" / "1.png", color())
    save(tmp_path / second / "a" / "2.png", color())
    assert has_parts(tmp_path)
    train, test = read_parts(tmp_path, 20)
    assert (train.classes, test.classes) == (("a", "b"), ("a", "b"))
    assert (train.labels.tolist(), test.labels.tolist()) == ([1], [0])
    assert len(read_images(tmp_path, 20)) == 2


def test_without_parts_a_fifth_of_every_class_is_drawn(tmp_path):
    x = rng().integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x=x, y=np.repeat([3, 1, 2], [10, 19, 1]))
    train, test = read_parts(tmp_path / "set.npz", 8)
    assert test.classes == ("1", "2", "3")
    assert np.bincount(test.labels, minlength=3).tolist() == [4, 0, 2]
    assert sorted([*train.ids, *test.ids], key=int) == [str(i) for i in range(30)]
    again = read_parts(tmp_path / "set.npz", 8)[1]
    assert again.ids == test.ids
    assert read_parts(tmp_path / "set.npz", 8, seed=1)[1].ids != test.ids


def test_an_archive_is_read_as_it_is(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    plain, packed = read_images(folder, 16), read_images(tmp_path / "set.zip", 16)
    assert torch.equal(plain.pixels, packed.pixels)
    assert plain.ids == packed.ids
    lazy = read_images(tmp_path / "set.zip", 16, in_memory=0)
    assert lazy.pixels is None
    assert torch.equal(pickle.loads(pickle.dumps(lazy))[2][0], plain[2][0])


def test_a_large_set_is_read_while_it_is_used(folder):
    kept, lazy = read_images(folder, 16), read_images(folder, 16, in_memory=0)
    assert torch.equal(lazy.images(range(5)), kept.pixels)
    (pixels, labels), *_ = lazy.batches(3)
    assert torch.equal(pixels, kept.pixels[:3])
    assert labels.tolist() == [0, 0, 0]
    (folder / "dog" / "1.png").write_bytes(b"gone bad")
    with pytest.raises(InputError, match=r"dog/1.png"):
        lazy[3]


def test_grey_transparent_palette_and_deep_images_become_rgb(tmp_path):
    grey = rng().integers(0, 256, (9, 9), dtype=np.uint8)
    save(tmp_path / "a.png", grey)
    deep = (grey.astype(np.uint16) * 257)[..., :]
    Image.fromarray(deep).save(tmp_path / "b.png")
    rgba = np.concatenate([color(0, 9, 9), np.zeros((9, 9, 1), np.uint8)], 2)
    rgba[:4, :, 3] = 255
    save(tmp_path / "c.png", rgba)
    Image.fromarray(color(0, 9, 9)).quantize(4).save(tmp_path / "d.png")
    Image.fromarray(np.stack([grey, np.full_like(grey, 255)], 2), "LA").save(tmp_path / "e.png")
    Image.fromarray(color(0, 9, 9)).convert("CMYK").save(tmp_path / "f.tif")
    Image.fromarray(grey > 127).save(tmp_path / "g.png")
    images = read_images(tmp_path, 9)
    expected = np.broadcast_to(grey, (3, 9, 9))
    for index in (0, 1, 4):
        assert np.array_equal(images[index][0].numpy(), expected), images.ids[index]
    see_through = images[2][0].permute(1, 2, 0).numpy()
    assert np.array_equal(see_through[:4], color(0, 9, 9)[:4])
    assert (see_through[4:] == 255).all()
    assert len(np.unique(images[3][0].numpy().reshape(3, -1), axis=1).T) <= 4
    assert np.abs(images[5][0].permute(1, 2, 0).numpy().astype(int) - color(0, 9, 9)).mean() < 3
    assert set(images[6][0].unique().tolist()) == {0, 255}


def test_mixed_sizes_are_brought_to_one(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    save(tmp_path / "wide.png", wide)
    save(tmp_path / "tiny.png", color(0, 1, 1))
    save(tmp_path / "tall.png", color(0, 50, 7))
    images = read_images(tmp_path, 10)
    assert images.pixels.shape == (3, 3, 10, 10)
    assert (images[images.ids.index("wide.png")][0] == 200).all()  # the centre is kept


def test_a_turned_photograph_is_set_upright(tmp_path):
    picture = color(0, 12, 12)
    tag = Image.Exif()
    tag[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray(picture).save(tmp_path / "a.png", exif=tag)
    assert np.array_equal(read_images(tmp_path, 12)[0][0].permute(1, 2, 0).numpy(), np.rot90(picture, -1))


def test_corrupt_images_are_named_or_skipped(folder):
    whole = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "3.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot be read[\s\S]*0\.png[\s\S]*--on-corrupt skip"):
        read_images(folder, 20)
    with pytest.warns(ContrastiveWarning, match="2 of 5 images were left out, for instance cat/0.png"):
        images = read_images(folder, 20, on_corrupt="skip")
    assert images.ids == ("cat/2.png", "cat/4.png", "dog/1.png")
    with pytest.warns(ContrastiveWarning, match="left out"):
        assert len(read_images(folder, 20, on_corrupt="skip", in_memory=0)) < 5
    for file in folder.rglob("*.png"):
        file.write_bytes(b"no")
    with pytest.raises(InputError, match="no image can be read"):
        read_images(folder, 20, on_corrupt="skip")


def test_images_without_a_range_are_refused(tmp_path):
    Image.fromarray(rng().normal(size=(8, 8)).astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="no defined range"):
        read_images(tmp_path, 8)
    Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="outside 16 bits"):
        read_images(tmp_path, 8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros(3)}, "no array x"),
        ({"x": np.zeros((3, 8, 8, 3), np.float32)}, "not of 8 or 16 bits"),
        ({"x": np.zeros((3, 8, 8, 5), np.uint8)}, "no known layout"),
        ({"x": np.zeros((0, 8, 8, 3), np.uint8)}, "no known layout"),
        ({"x": np.zeros((3, 8, 8, 3), np.uint8), "y": np.zeros(2, int)}, "one integer or name"),
        ({"x": np.zeros((3, 8, 8, 3), np.uint8), "y": np.zeros(3)}, "one integer or name"),
        ({"x": np.array([None, None])}, "cannot be read"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_images(tmp_path / "set.npz", 8)


def test_arrays_of_other_kinds_are_read(tmp_path):
    x = rng().integers(0, 256, (4, 10, 12), dtype=np.uint8)
    np.savez(tmp_path / "grey.npz", x=x, y=np.array(["b", "a", "a", "b"]))
    images = read_images(tmp_path / "grey.npz", 10)
    assert images.classes == ("a", "b")
    assert torch.equal(images.pixels[:, 0], images.pixels[:, 2])
    assert np.array_equal(images.pixels[0, 0].numpy(), x[0, :, 1:11])
    np.savez(tmp_path / "deep.npz", x=x.astype(np.uint16) * 257)
    assert torch.equal(read_images(tmp_path / "deep.npz", 10).pixels, images.pixels)
    clear = np.zeros((2, 8, 8, 4), np.uint8)
    np.savez(tmp_path / "clear.npz", x=clear)
    assert (read_images(tmp_path / "clear.npz", 8).pixels == 255).all()


def test_what_is_no_set_of_images_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match="missing"):
        read_images(tmp_path / "nothing", 8)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="not a set of images"):
        read_images(tmp_path / "a.txt", 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there are no images"):
        read_images(tmp_path / "empty", 8)
    (tmp_path / "empty" / "a.zip").write_bytes(b"x")
    with pytest.raises(InputError, match=r"name the archive .*a\.zip"):
        read_images(tmp_path / "empty", 8)
    with pytest.raises(InputError, match="archive cannot be read"):
        read_images(tmp_path / "empty" / "a.zip", 8)
    with pytest.raises(InputError, match="there is no test part"):
        read_images(folder, 8, split="test")
    save(folder / "stray.png", color())
    with pytest.raises(InputError, match=r"stray\.png"):
        read_images(folder, 8)


def test_images_beside_the_parts_are_refused(tmp_path):
    save(tmp_path / "train" / "a" / "1.png", color())
    save(tmp_path / "other" / "2.png", color())
    with pytest.raises(InputError, match="beside the folders of the parts"):
        read_images(tmp_path, 8)


def test_one_class_is_no_task(tmp_path):
    save(tmp_path / "only" / "1.png", color())
    with pytest.raises(InputError, match="every image is of class only"):
        read_images(tmp_path, 8).labelled("evaluation")


def test_a_wrapped_archive_keeps_its_parts(tmp_path):
    for part in ("Train", "Test"):
        for name in ("cat", "dog"):
            save(tmp_path / "z" / "data" / part / name / "0.PNG", color(), format="PNG")
    with zipfile.ZipFile(tmp_path / "z.ZIP", "w") as archive:
        for file in sorted((tmp_path / "z").rglob("*.PNG")):
            archive.write(file, file.relative_to(tmp_path / "z"))
    for path in (tmp_path / "z", tmp_path / "z.ZIP"):
        assert has_parts(path)
        train = read_images(path, 20, split="train")
        assert train.ids == ("data/Train/cat/0.PNG", "data/Train/dog/0.PNG")
        assert train.classes == ("cat", "dog")


def test_three_parts_stay_apart(tmp_path):
    for index, part in enumerate(("train", "valid", "test")):
        save(tmp_path / part / "a" / f"{index}.png", color(index))
    assert [read_images(tmp_path, 8, split=part).ids for part in ("train", "val", "test")] == [
        ("train/a/0.png",),
        ("valid/a/1.png",),
        ("test/a/2.png",),
    ]
    with pytest.warns(ContrastiveWarning, match="validation part"):
        assert [len(part) for part in read_parts(tmp_path, 8)] == [1, 1]


@pytest.mark.unchecked
def test_an_unknown_part_is_refused(folder):
    with pytest.raises(InputError, match="unknown part"):
        read_images(folder, 8, split="banana")


def test_folders_of_unclear_parts_are_refused(tmp_path):
    for name in ("a/train/cat/1.png", "a/banana/cat/2.png"):
        save(tmp_path / name, color())
    with pytest.raises(InputError, match=r"beside[\s\S]*banana"):
        read_images(tmp_path / "a", 8)
    for name in ("b/train/cat/1.png", "b/Training/cat/2.png"):
        save(tmp_path / name, color())
    with pytest.raises(InputError, match=r"two folders hold the train part[\s\S]*Training, train"):
        read_images(tmp_path / "b", 8)
    for name in ("c/bottle/train/good/1.png", "c/cable/test/bad/2.png"):
        save(tmp_path / name, color())
    with pytest.raises(InputError, match="inside other folders"):
        read_images(tmp_path / "c", 8)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("car", "plane", "train"):
        save(tmp_path / name / "1.png", color())
    assert read_images(tmp_path, 8).classes == ("car", "plane", "train")
    assert not has_parts(tmp_path)


def test_a_part_without_classes_beside_one_with_them(tmp_path):
    save(tmp_path / "train" / "a" / "1.png", color())
    save(tmp_path / "test" / "2.png", color())
    assert read_images(tmp_path, 8, split="train").labels.tolist() == [0]
    assert read_images(tmp_path, 8, split="test").labels is None
    with pytest.raises(InputError, match="--split"):
        read_images(tmp_path, 8)


def test_every_entry_is_used_or_named(tmp_path):
    save(tmp_path / "elsewhere" / "1.png", color())
    save(tmp_path / "set" / "a" / "deep" / "er" / "2.JPEG", color(1), format="JPEG")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "a" / "loop").symlink_to(tmp_path / "set")
    images = read_images(tmp_path / "set", 8)
    assert images.ids == ("a/deep/er/2.JPEG", "b/1.png")
    assert images.classes == ("a", "b")
    (tmp_path / "set" / "b").unlink()
    (tmp_path / "set" / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="leads nowhere"):
        read_images(tmp_path / "set", 8)
    with pytest.warns(ContrastiveWarning, match=r"1 of 2 images were left out, for instance a/gone\.png"):
        read_images(tmp_path / "set", 8, on_corrupt="skip")
    (tmp_path / "set" / "a" / "gone.png").unlink()
    (tmp_path / "set" / "a" / "phone.heic").write_bytes(b"ftypheic")
    with pytest.raises(InputError, match=r"phone\.heic[\s\S]*no image format"):
        read_images(tmp_path / "set", 8)
    (tmp_path / "set" / "a" / "phone.heic").rename(tmp_path / "set" / "a" / "clip.mp4")
    with pytest.warns(ContrastiveWarning, match=r"1 files that are no images were left out, for instance a/clip\.mp4"):
        assert len(read_images(tmp_path / "set", 8)) == 1


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match="no ordinary file"):
        read_images(tmp_path, 8)
    with pytest.raises(InputError, match="not a set of images"):
        read_images(tmp_path / "a.png", 8)


def test_one_class_in_two_spellings_of_unicode(tmp_path):
    save(tmp_path / "train" / "caf\u00e9" / "1.png", color())
    save(tmp_path / "test" / "cafe\u0301" / "2.png", color())
    assert read_images(tmp_path, 8).classes == ("caf\u00e9",)


@pytest.mark.parametrize("kind", [".png", ".tif", ".pgm"])
def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path, kind):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(64, 0)
    Image.fromarray(ramp).save(tmp_path / f"a{kind}")
    row = read_images(tmp_path, 64)[0][0][0, 0].numpy().astype(int)
    assert np.abs(row - np.rint(ramp[0] / 257)).max() == 0


def test_a_tiff_says_how_many_bits_it_has_and_what_zero_is(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(64, 0)
    Image.fromarray(ramp).save(tmp_path / "a.tif", tiffinfo={262: 0})
    row = read_images(tmp_path, 64)[0][0][0, 0].numpy().astype(int)
    assert np.abs(row - (255 - np.rint(ramp[0] / 257))).max() == 0
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "a.tif")
    assert read_images(tmp_path, 64)[0][0][0, 0].numpy().max() == 255
    Image.fromarray((ramp // 257).astype(np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="no declared range"):
        read_images(tmp_path, 64)


def test_of_several_frames_the_first_is_taken_and_it_is_said(tmp_path):
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (0, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(ContrastiveWarning, match=r"1 images with several frames.*a\.gif"):
        assert int(read_images(tmp_path, 8).pixels.max()) == 0


def test_a_file_of_another_kind_starts_no_interpreter(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(InputError, match="no image format"):
        read_images(tmp_path, 8)


def table(folder, text, name="labels.csv"):
    for index in range(3):
        save(folder / "pictures" / f"{index}.png", color(index))
    (folder / name).write_text(text, encoding="utf-8")


def test_a_table_gives_labels_as_they_are_written(tmp_path):
    table(tmp_path, "\ufeffFile Name,Label\npictures/2.png,007\npictures\\0.png,7\npictures/1,NaN\n")
    images = read_images(tmp_path, 8)
    assert images.classes == ("007", "7", "NaN")
    assert images.labels.tolist() == [1, 2, 0]


def test_a_table_gives_parts(tmp_path):
    table(tmp_path / "pictures", "image\tsplit\n0\tTraining\n1\ttrain\n2\tvalidation\n", "labels.tsv")
    for file in (tmp_path / "pictures" / "pictures").iterdir():
        file.rename(tmp_path / "pictures" / file.name)
    assert has_parts(tmp_path)
    assert read_images(tmp_path, 8, split="test").ids == ("pictures/2.png",)
    archived = tmp_path / "set.zip"
    with zipfile.ZipFile(archived, "w") as archive:
        for file in (tmp_path / "pictures").glob("*.*"):
            archive.write(file, file.name)
    assert read_images(archived, 8, split="train").ids == ("0.png", "1.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\npictures/0.png,a\npictures/1.png,b\n", "have no row"),
        ("file,label\npictures/0.png,a\npictures/1.png,b\npictures/2.png,\n", r"line 4[\s\S]*pictures/2\.png"),
        ("file,label\npictures/0.png,a\npictures/0.png,b\npictures/2.png,b\n", "named twice"),
        ("file,label\npictures/0.png,a\npictures/9.png,b\npictures/2.png,b\n", "line 3"),
        ("file,label\npictures/0.png,a,b\n", "another number of cells"),
        ("picture,species\npictures/0.png,a\n", r"picture, species[\s\S]*file and label"),
        ("file,label,class\npictures/0.png,a,b\n", "two columns may be the label"),
        ("file,split\npictures/0.png,train\npictures/1.png,banana\npictures/2.png,test\n", r"line 3[\s\S]*banana"),
    ],
)
def test_tables_of_something_else_are_refused(tmp_path, text, message):
    table(tmp_path, text)
    with pytest.raises(InputError, match=message):
        read_images(tmp_path, 8)


def test_folders_and_table_have_to_agree(folder):
    rows = [f"{file.relative_to(folder).as_posix()},{file.parent.name}" for file in sorted(folder.rglob("*.png"))]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]))
    assert read_images(folder, 8).classes == ("cat", "dog")
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows[:-1], rows[-1].replace(",dog", ",cat")]))
    with pytest.raises(InputError, match=r"different classes[\s\S]*the table says cat, the folder dog"):
        read_images(folder, 8)


@pytest.mark.parametrize(
    ("images", "labels"),
    [("X", "Y"), ("images", "labels"), ("data", "target"), ("Img", "Targets"), ("arr_0", "arr_1")],
)
def test_arrays_are_known_by_any_usual_name(tmp_path, images, labels):
    x = rng().integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", **{images: x, labels: np.array([[10], [9], [10], [9]])})
    read = read_images(tmp_path / "a.npz", 8)
    assert read.classes == ("9", "10")
    assert read.labels.tolist() == [1, 0, 1, 0]
    assert np.array_equal(read.pixels.permute(0, 2, 3, 1).numpy(), x)


@pytest.mark.parametrize("names", ["x_train y_train x_test y_test", "train_images train_labels val_images val_labels"])
def test_arrays_of_parts_are_parts(tmp_path, names):
    x = rng().integers(0, 256, (4, 8, 8), dtype=np.uint8)
    arrays = dict(zip(names.split(), (x, np.arange(4) % 2, x[:2], np.array([1, 1])), strict=True))
    np.savez(tmp_path / "a.npz", **arrays, classes=np.array(["no", "yes"]))
    assert has_parts(tmp_path / "a.npz")
    train, test = read_parts(tmp_path / "a.npz", 8)
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 0, 1], [0, 0])
    assert (train.classes, test.classes) == (("no", "yes"), ("yes",))
    whole = read_images(tmp_path / "a.npz", 8)
    assert whole.labels.tolist() == [0, 1, 0, 1, 1, 1]
    assert torch.equal(whole.pixels[4:], test.pixels)
    with pytest.raises(InputError, match="no val part"):
        read_images(tmp_path / "a.npz", 8, split="val")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x", "meta"], r"unknown name[\s\S]*meta"),
        (["x", "images"], "x and images are both images"),
        (["x", "y_test"], "y_test has no images"),
        (["x", "x_test"], "of a part and some of none"),
        (["x", "classes"], "no array y"),
    ],
)
def test_arrays_of_unclear_names_are_refused(tmp_path, names, message):
    np.savez(tmp_path / "a.npz", **{name: np.zeros((2, 8, 8, 3), np.uint8) for name in names})
    with pytest.raises(InputError, match=message):
        read_images(tmp_path / "a.npz", 8)


def test_one_image_is_not_taken_for_its_rows(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="no known layout"):
        read_images(tmp_path / "a.npz", 8)


def test_labels_in_bytes_are_texts(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 8, 8, 3), np.uint8), y=np.array([b"caf\xc3\xa9", b"tea"]))
    assert read_images(tmp_path / "a.npz", 8).classes == ("caf\u00e9", "tea")


def test_packed_data_are_looked_at_before_they_are_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = np.lib.format.magic(1, 0) + b"\x76\x00"
        text = "{'descr': '|u1', 'fortran_order': False, 'shape': (5900, 64, 64, 3)}"
        with archive.open("x.npy", "w") as member:
            member.write(header + text.ljust(117).encode() + b"\n")
            for _ in range(70):
                member.write(bytes(1 << 20))
    with pytest.raises(InputError, match="would become"):
        read_images(tmp_path / "bomb.npz", 8)
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        shape = text.replace("5900", "1000000000000")
        archive.writestr("x.npy", header + shape.ljust(117).encode() + b"\n")
    with pytest.raises(InputError, match="too short for its shape"):
        read_images(tmp_path / "short.npz", 8)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(70 << 20))
    with pytest.raises(InputError, match="would become"):
        read_images(tmp_path / "bomb.zip", 8)


def test_two_files_of_one_name_in_an_archive_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("set/a.png", save(tmp_path / "0.png", color(0)).read_bytes())
        archive.writestr("set\\a.png", save(tmp_path / "1.png", color(1)).read_bytes())
    with pytest.raises(InputError, match="two files of one name"):
        read_images(tmp_path / "a.zip", 8)


def test_images_in_memory_are_a_set_too():
    x = rng().integers(0, 256, (4, 8, 12, 3), dtype=np.uint8)
    images = image_set(x, ["b", "a", "a", "b"])
    assert (images.side, images.classes, images.labels.tolist()) == (8, ("a", "b"), [1, 0, 0, 1])
    assert np.array_equal(images[0][0].permute(1, 2, 0).numpy(), x[0, :, 2:10])
    assert images.resized(4).pixels.shape == (4, 3, 4, 4)
    for labels in ([0, 1, 0], ["a", "b", None, "a"], [0.0, 1.0, 0.0, 1.0], ["a", "", "b", "b"]):
        with pytest.raises(InputError, match="label"):
            image_set(x, labels)


def valid_file(name):
    """The bytes of a small valid file."""
    png, out = io.BytesIO(), io.BytesIO()
    Image.fromarray(color(0, 8, 8)).save(png, "PNG")
    if name == "a.npz":
        np.savez(out, x=rng().integers(0, 256, (2, 8, 8, 3), np.uint8), y=np.arange(2))
    elif name == "a.zip":
        with zipfile.ZipFile(out, "w") as file:
            file.writestr("cat/1.png", png.getvalue())
    elif name == "data_batch_1":
        out.write(pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [3]}, protocol=2))
    else:
        out.write(b"file,label\n1.png,cat\n" if name == "labels.csv" else png.getvalue())
    return out.getvalue()


def outcome(path):
    """Whether a set is read, or refused in one block."""
    try:
        images = read_images(path, 8)
    except InputError as error:
        return len(str(error)) < 3000
    return images.pixels.shape == (len(images), 3, 8, 8)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=80, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=sampled_from(["1.png", "a.npz", "a.zip", "data_batch_1", "labels.csv"]), draw=data())
def test_any_bytes_give_images_or_the_one_block(tmp_path, name, draw):
    """Damaged copies of valid files too: cut, or with bytes changed."""
    place = Path(tempfile.mkdtemp(dir=tmp_path))
    (place / "1.png").write_bytes(valid_file("1.png"))
    content = bytearray(draw.draw(sampled_from([valid_file(name), b""])) + draw.draw(binary(max_size=8)))
    for position, value in draw.draw(
        lists(tuples(integers(0, max(len(content) - 1, 0)), integers(0, 255)), max_size=4)
    ):
        content[position : position + 1] = bytes([value])
    del content[draw.draw(integers(0, len(content))) :]
    (place / name).write_bytes(content)
    assert outcome(place / name if name in ("a.npz", "a.zip") else place)


def cifar(folder, layout, labels="labels"):
    folder = folder / layout
    folder.mkdir(parents=True)
    generator, rows = rng(), {}
    names = ["train", "test"] if "100" in layout else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name in names:
        data = generator.integers(0, 256, (4, 3072), dtype=np.uint8)
        rows[name] = data
        content = {b"data": data, labels.encode(): [3, 1, 0, 2]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder, rows


def test_cifar_10_in_the_layout_of_torchvision(tmp_path):
    folder, rows = cifar(tmp_path, "cifar-10-batches-py")
    for path in (tmp_path, folder):
        train, test = read_parts(path, 32)
        assert (len(train), len(test)) == (20, 4)
        assert train.classes[3] == "cat"
        assert train.labels[:4].tolist() == [3, 1, 0, 2]
        assert np.array_equal(test[0][0].numpy().ravel(), rows["test_batch"][0])


def test_cifar_10_in_its_binary_version(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    data = rng().integers(0, 256, (2, 3073), dtype=np.uint8)
    data[:, 0] = (7, 9)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        (folder / name).write_bytes(data.tobytes())
    train, test = read_parts(tmp_path, 32)
    assert train.labels.tolist() == [7, 9] * 5
    assert np.array_equal(test[1][0].numpy().ravel(), data[1, 1:])
    (folder / "data_batch_2.bin").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="no whole records"):
        read_images(tmp_path, 32)


def test_cifar_100_has_fine_classes(tmp_path):
    folder, _ = cifar(tmp_path, "cifar-100-python", "fine_labels")
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bear", "cup", "dog"]}))
    train, test = read_parts(tmp_path, 32)
    assert train.classes == ("apple", "bear", "cup", "dog")
    assert test.labels.tolist() == [3, 1, 0, 2]


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    folder, _ = cifar(tmp_path, "cifar-10-batches-py")
    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(mark)!r}, 'w').close()",)

    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(InputError, match=r"refused[\s\S]*data_batch_3[\s\S]*exec"):
        read_images(tmp_path, 32)
    assert not mark.exists()
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": np.zeros((2, 9)), b"labels": [1, 2]}))
    with pytest.raises(InputError, match="damaged"):
        read_images(tmp_path, 32)
    (folder / "data_batch_3").unlink()
    with pytest.raises(InputError, match="missing"):
        read_images(tmp_path, 32)


def test_samples_are_real_and_repeat(samples, tmp_path):
    digits, photographs = samples
    assert [sum(1 for _ in (digits / part).rglob("*.png")) for part in ("train", "test")] == [1442, 355]
    test = read_images(digits, 8, split="test")
    assert test.classes == tuple("0123456789")
    assert int(test.pixels.max()) == 255
    assert len(read_images(photographs, 64)) == 120
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "old.png").write_bytes(b"x")
    with pytest.raises(InputError, match="--overwrite"):
        write_samples(tmp_path)
    write_samples(tmp_path, overwrite=True)
    assert not (tmp_path / "photographs" / "old.png").exists()
    for name in ("digits/test/0/0036.png", "photographs/temple-000-064.png"):
        assert (tmp_path / name).read_bytes() == (digits.parent / name).read_bytes()


def test_views_depend_on_the_generator_alone():
    images = torch.randint(0, 256, (6, 3, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    views = [random_view(images, 16, ViewSettings(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert views[0].shape == (6, 3, 16, 16)
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    assert 0 <= float(views[0].min()) <= float(views[0].max()) <= 1


def test_without_augmentation_a_view_is_the_image():
    images = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    still = ViewSettings(crop_min=1.0, flip=0.0, jitter=0.0, hue=0.0, jitter_share=0.0, gray=0.0, blur=0.0)
    # A crop of the whole area still draws its shape, so the aspect ratio moves by up to a third.
    square = images.float().mean((2, 3)) / 255
    view = random_view(images, 16, still, torch.Generator().manual_seed(0))
    torch.testing.assert_close(view.mean((2, 3)), square, atol=0.06, rtol=0)
    grey = random_view(images, 16, ViewSettings(gray=1.0, jitter_share=0.0, blur=0.0), torch.Generator().manual_seed(0))
    torch.testing.assert_close(grey[:, 0], grey[:, 1], atol=2e-3, rtol=0)
    mirrored = [ViewSettings(crop_min=1.0, flip=p, jitter_share=0.0, gray=0.0, blur=0.0) for p in (0.0, 1.0)]
    left, right = (random_view(images, 16, each, torch.Generator().manual_seed(0)) for each in mirrored)
    assert not torch.allclose(left, right)


def test_the_hue_turns_and_keeps_the_luma():
    images = torch.tensor([200, 40, 40], dtype=torch.uint8)[None, :, None, None].expand(64, 3, 8, 8).contiguous()
    turned = random_view(
        images,
        8,
        ViewSettings(jitter=0.0, hue=0.1, jitter_share=1.0, gray=0.0, blur=0.0),
        torch.Generator().manual_seed(0),
    )
    luma = torch.einsum("c,bchw->bhw", torch.tensor([0.299, 0.587, 0.114]), turned)
    assert float(luma.std()) < 0.02
    assert float(turned[:, 0, 0, 0].std()) > 0.02


def test_blur_is_a_gaussian_and_zero_leaves_the_image():
    dot = torch.zeros(2, 3, 21, 21)
    dot[:, :, 10, 10] = 1
    blurred = gaussian_blur(dot, torch.tensor([0.0, 1.5]), 8)
    torch.testing.assert_close(blurred[0], dot[0])
    assert float(blurred[1, 0].sum()) == pytest.approx(1, abs=1e-5)
    offsets = torch.arange(-10, 11).float()
    spread = (blurred[1, 0].sum(0) * offsets.square()).sum().sqrt()
    assert float(spread) == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_grow_with_severity(kind):
    from sklearn.datasets import load_sample_image

    photograph = torch.from_numpy(load_sample_image("china.jpg")[100:164, 100:164].copy()).permute(2, 0, 1)[None] / 255
    changed = [corrupt(photograph, kind, s, generator=torch.Generator().manual_seed(0)) for s in SEVERITIES]
    errors = [float((each - photograph).square().mean()) for each in changed]
    # Blocks that do not divide the side fall unevenly, so pixelation need not grow with every single step.
    assert errors == sorted(errors) or kind == "pixelate"
    assert 0 < errors[0] == min(errors) < max(errors) == errors[-1]
    for each in changed:
        assert each.shape == photograph.shape
        assert 0 <= float(each.min()) <= float(each.max()) <= 1


def test_uniform_noise_shows_nothing_and_is_drawn_afresh():
    images = torch.zeros(4, 3, 16, 16)
    generator = torch.Generator().manual_seed(0)
    first, second = uniform_noise(images, generator), uniform_noise(images, generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, uniform_noise(images, torch.Generator().manual_seed(0)))
    assert float(first.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(first.std()) == pytest.approx(12**-0.5, abs=0.02)


@pytest.mark.unchecked
def test_unknown_corruptions_and_bad_settings_are_refused():
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="1 to 5"):
        corrupt(x, "noise", 6)
    with pytest.raises(ValueError, match="expected one of"):
        corrupt(x, "fog", 1)
    with pytest.raises(InputError, match=r"--views\.crop-min"):
        ViewSettings(crop_min=0)
    with pytest.raises(InputError, match=r"--views\.flip"):
        ViewSettings(flip=2)
