"""Reading pairs and features: every layout, and every way in which they can be unusable."""

import dataclasses
import json
import tracemalloc
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from cl_retrieval.encoders import load_encoder
from cl_retrieval.pairs.embedding import cached_features, embed_to_file
from cl_retrieval.pairs.features import PairFeatures, read_features, write_features
from cl_retrieval.pairs.published import read_mirflickr, read_nus_wide, read_pascal, read_published, read_wikipedia
from cl_retrieval.pairs.raw import open_image, read_pairs
from contrastive_core.errors import ContrastiveWarning, InputError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

RNG = np.random.default_rng(0)


def unit_rows(n=6, d=8):
    rows = RNG.normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


X, Y = unit_rows(), unit_rows()
L = np.eye(3, dtype=np.uint8)[[0, 0, 1, 1, 2, 2]]


def picture(path, colour="red", size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


# --- features ---------------------------------------------------------------------------------------------------------


def as_npz(path):
    np.savez(path, image=X, text=Y, labels=L)


def as_mat(path):
    savemat(path, {"XAll": X, "YAll": Y, "LAll": L})


def as_mat73(path):
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in (("XAll", X), ("YAll", Y), ("LAll", L)):
            file[name] = value.T  # as MATLAB writes them
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")


def as_h5(path):
    with h5py.File(path, "w") as file:
        file["image"], file["text"], file["labels"] = X, Y, L
        file["ids"] = [f"a{i}" for i in range(6)]


def as_wikipedia(path):
    parts = {
        "I_tr": X[:4],
        "I_te": X[4:],
        "T_tr": Y[:4],
        "T_te": Y[4:],
        "L_tr": [[1], [1], [2], [2]],
        "L_te": [[3], [3]],
    }
    savemat(path, parts)


@pytest.mark.parametrize(
    ("name", "write"),
    [("f.npz", as_npz), ("f.mat", as_mat), ("f73.mat", as_mat73), ("f.h5", as_h5), ("raw_features.mat", as_wikipedia)],
)
def test_every_layout_of_features_reads_the_same(tmp_path, name, write):
    write(tmp_path / name)
    found = read_features(tmp_path / name)
    np.testing.assert_allclose(found.image, X, atol=1e-6)
    np.testing.assert_allclose(found.text, Y, atol=1e-6)
    assert np.array_equal(found.labels, L)
    assert len(set(found.ids)) == 6


def test_a_folder_of_npy_reads_and_so_does_a_file_of_it(tmp_path):
    for name, value in (("image", X), ("text", Y), ("labels", L.argmax(1))):
        np.save(tmp_path / f"{name}.npy", value)
    for path in (tmp_path, tmp_path / "image.npy"):
        found = read_features(path)
        assert np.array_equal(found.labels, L)
        np.testing.assert_allclose(found.text, Y, atol=1e-6)


def test_our_own_file_keeps_everything(tmp_path):
    features = PairFeatures(
        tuple("abcdef"),
        X,
        Y,
        L,
        ("x", "y", "z"),
        texts=tuple("uvwxyz"),
        images=tuple("123456"),
        encoder="some/encoder",
        fingerprint="f",
        source="folder",
    )
    write_features(tmp_path / "f.npz", features)
    found = read_features(tmp_path / "f.npz")
    for name in ("ids", "classes", "texts", "images", "encoder", "fingerprint", "source"):
        assert getattr(found, name) == getattr(features, name)
    kept = found.take(np.array([4, 1]))
    assert kept.ids == ("e", "b")
    assert kept.texts == ("y", "v")
    np.testing.assert_allclose(kept.image, X[[4, 1]], atol=1e-6)


def test_raw_rows_are_brought_to_unit_length_with_a_note(tmp_path):
    np.savez(tmp_path / "f.npz", image=3 * X, text=5 * Y)
    with pytest.warns(ContrastiveWarning, match="unit length"):
        found = read_features(tmp_path / "f.npz")
    np.testing.assert_allclose(found.image, X, atol=1e-6)
    assert found.labels is None


BAD = {
    "mixed modalities": ({"image": X, "text": 3 * Y}, "mixed"),
    "mixed rows": ({"image": np.concatenate([X[:3], 3 * X[3:]]), "text": Y}, "mixed"),
    "not finite": ({"image": np.where(np.eye(6, 8) > 0, np.nan, X), "text": Y}, "not finite"),
    "zero row": ({"image": X * (np.arange(6) != 2)[:, None], "text": Y}, "zero"),
    "widths": ({"image": X, "text": unit_rows(d=4)}, "different widths"),
    "unpaired": ({"image": X, "text": Y[:4]}, "do not pair"),
    "no pairs": ({"image": X[:0], "text": Y[:0]}, "no pairs"),
    "twice": ({"image": X, "text": Y, "ids": np.array(list("aabcde"))}, "occurs twice"),
    "path": ({"image": X, "text": Y, "ids": np.array(["../a", *"bcdef"])}, "not usable as a name"),
    "halves": ({"image": X, "text": Y, "ids": np.arange(6) + 0.5}, "neither texts nor whole numbers"),
    "weights": ({"image": X, "text": Y, "labels": L * 0.5}, "neither zeros and ones"),
    "no label": ({"image": X, "text": Y, "labels": np.array([1, 1, 2, 2, np.nan, 3])}, "neither texts nor whole"),
    "divided": ({"image": X, "text": Y, "train_idx": np.arange(3)}, "divides the pairs itself"),
    "classes": ({"image": X, "text": Y, "labels": L, "classes": np.array(["a", "b"])}, "names of the classes"),
    "labels": ({"image": X, "text": Y, "labels": L[:5]}, "labels do not fit"),
    "no text": ({"image": X}, "no text features"),
    "pixels": ({"image": np.zeros((6, 3, 8, 8)), "text": Y}, "no matrix"),
    "objects": ({"image": np.array([{}, {}], dtype=object), "text": Y}, "was refused"),
}


@pytest.mark.parametrize("case", BAD)
def test_unusable_features_are_refused(tmp_path, case):
    arrays, message = BAD[case]
    path = tmp_path / "f.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message) as caught:
        read_features(path)
    assert "f.npz" in str(caught.value) or case == "objects"  # there the member of the archive is named


def test_mixed_rows_pass_where_asked(tmp_path):
    np.savez(tmp_path / "f.npz", image=X, text=3 * Y)
    np.testing.assert_allclose(read_features(tmp_path / "f.npz", normalise=True).text, Y, atol=1e-6)


def test_one_long_caption_costs_its_own_length(tmp_path):
    """An array of strings would be as wide as the longest everywhere: 80 MB here."""
    n, rows = 2000, np.eye(2000, 4, dtype=np.float32) + 1
    texts = ("a dög",) * (n - 1) + ("x" * 10_000,)
    pairs = PairFeatures.from_arrays(rows, rows, ids=[f"{i}" for i in range(n)])
    tracemalloc.start()
    write_features(tmp_path / "f.npz", dataclasses.replace(pairs, texts=texts))
    read = read_features(tmp_path / "f.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read.texts == texts
    assert read.ids == pairs.ids
    assert peak < 8e6


def test_files_that_lead_elsewhere_are_refused(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = X
    layout = h5py.VirtualLayout(shape=X.shape, dtype="f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", shape=X.shape)
    for name in ("storage", "link", "soft", "virtual"):
        with h5py.File(tmp_path / f"{name}.h5", "w", libver="latest") as file:
            file["text"] = Y
            if name == "storage":
                file.create_dataset("image", shape=(6, 8), dtype="u1", external=[("/etc/hostname", 0, 48)])
            elif name == "virtual":
                file.create_virtual_dataset("image", layout)
            else:
                file["image"] = h5py.ExternalLink("secret.h5", "/x") if name == "link" else h5py.SoftLink("/text")
        with pytest.raises(InputError, match="another file"):
            read_features(tmp_path / f"{name}.h5")


def test_files_that_unpack_to_more_than_they_are_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("cl_retrieval.pairs.arrays._LARGE", 2**16)
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("image", shape=(10**6, 10**6), dtype="f4", chunks=(1, 1000), fillvalue=1.0)
    savemat(tmp_path / "bomb.mat", {"image": np.zeros((2**17, 1)), "text": Y}, do_compression=True)
    with (tmp_path / "image.npy").open("wb") as file:
        shape = {"descr": "<f4", "fortran_order": False, "shape": (6 * 10**9, 8)}
        np.lib.format.write_array_header_1_0(file, shape)
        file.write(bytes(192))
    for name, message in {"bomb.h5": "unpack", "bomb.mat": "unpack", "image.npy": "claims"}.items():
        with pytest.raises(InputError, match=message) as caught:
            read_features(tmp_path / name)
        assert name in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), what=st.binary(min_size=1, max_size=8), cut=st.booleans())
@pytest.mark.parametrize("name", ["f.npz", "f.h5"])
def test_any_damage_gives_a_value_or_one_block(tmp_path, name, place, what, cut):
    {"f.npz": as_npz, "f.h5": as_h5}[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    at = int(place * len(whole))
    (tmp_path / name).write_bytes(whole[:at] if cut else whole[:at] + what + whole[at + len(what) :])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_features(tmp_path / name)
        except InputError as error:
            assert str(tmp_path) in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["f.npz", "f.mat", "f.h5"])
def test_damaged_files_are_refused(tmp_path, name):
    {"f.npz": as_npz, "f.mat": as_mat, "f.h5": as_h5}[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot be read|holds no"):
        read_features(tmp_path / name)
    with pytest.raises(InputError, match="missing"):
        read_features(tmp_path / f"no{name}")
    (tmp_path / "f.pkl").write_bytes(b"x")
    with pytest.raises(InputError, match="no known kind"):
        read_features(tmp_path / "f.pkl")


# --- tables and folders -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png")
    return tmp_path


def write_table(folder, kind):
    rows = [("a.png", "a red square"), ("b.png", "another"), ("b.png", "and again"), ("c.png", "a third")]
    if kind == "jsonl":
        lines = [json.dumps({"image": image, "text": text, "labels": ["red"]}) for image, text in rows]
        (folder / "pairs.jsonl").write_text("\n".join(lines))
    elif kind == "csv":
        (folder / "pairs.csv").write_text("image,text,labels\n" + "\n".join(f"{i},{t},red|square" for i, t in rows))
    elif kind == "txt":
        (folder / "captions.txt").write_text("\n".join(f"{i}\t{t}" for i, t in rows))
    else:
        ids = {"a.png": 7, "b.png": 8, "c.png": 9}
        coco = {
            "images": [{"id": number, "file_name": name} for name, number in ids.items()],
            "annotations": [{"image_id": ids[i], "caption": t} for i, t in rows],
        }
        (folder / "captions.json").write_text(json.dumps(coco))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt", "coco"])
def test_every_table_reads_the_same_pairs(folder, kind):
    write_table(folder, kind)
    found = read_pairs(folder)
    assert [path.name for path in found.images] == ["a.png", "b.png", "c.png"]
    assert found.texts == (("a red square",), ("another", "and again"), ("a third",))
    onehot, classes = found.one_hot()
    if kind == "csv":
        assert classes == ("red", "square")
        assert onehot.sum() == 6
    elif kind == "jsonl":
        assert classes == ("red",)
    else:
        assert onehot is None


def refuse(folder, line, message):
    (folder / "pairs.jsonl").write_text('{"id": "1", "image": "a.png", "text": "fine"}\n' + line)
    with pytest.raises(InputError, match=message):
        read_pairs(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "2", "image": "b.png", "text": " "}', "no text"),
        ('{"id": "2", "text": "alone"}', "no image"),
        ('{"id": "2", "image": "gone.png", "text": "alone"}', "no image"),
        ('{"id": "1", "image": "b.png", "text": "other"}', "twice"),
        ('{"id": "../2", "image": "b.png", "text": "x"}', "not usable as a name"),
        ('{"id": "2", "image": "../../b.png", "text": "x"}', "outside the folder"),
        ('{"id": "2", "image": "/etc/hostname", "text": "x"}', "outside the folder"),
        ("{broken", "line 2"),
        ("[1]", "line 2"),
        ('{"id": "2", "image": "b.png", "text": {"en": "x"}}', "no text"),
        ('{"id": "2", "image": "b.png", "text": NaN}', "no text"),
        ('{"id": "2", "image": "b.png", "text": "half \\ud83d"}', "not valid Unicode"),
        ('{"id": "2", "image": "b.png", "text": "x", "labels": [1.5]}', "label is no text"),
        ('{"id": "2", "image": "b.png", "text": "x", "labels": true}', "label is no text"),
        ('{"id": "", "image": "b.png", "text": "x"}', "id is empty"),
        ('{"id": " 2", "image": "b.png", "text": "x"}', "not usable as a name"),
        ('{"id": "1", "image": "a.png", "text": "more", "labels": ["red"]}', "different labels"),
        ('{"id": "2", "image": "b.png", "text": "x", "split": "test"}', "not known"),
        ('{"id": "2", "image": "b.png", "text": "x", "caption": "y"}', "mean the same"),
    ],
)
def test_unusable_rows_are_refused(folder, line, message):
    refuse(folder, line, message)


def test_empty_and_missing_pairs_are_refused(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("")
    with pytest.raises(InputError, match="no pairs"):
        read_pairs(tmp_path)
    (tmp_path / "pairs.jsonl").unlink()
    with pytest.raises(InputError, match="holds no pairs"):
        read_pairs(tmp_path)
    with pytest.raises(InputError, match="missing"):
        read_pairs(tmp_path / "nothing")
    for content, message in {
        "file,labels\na,b\n": "lacks a column",
        "image,text\na.png,a dog, two cats\n": "another number of cells",
        'image,text\na.png,"a dog\n': "cannot be read",
        "image,text,note\na.png,a dog,x\n": "not known",
    }.items():
        (tmp_path / "pairs.csv").write_text(content)
        with pytest.raises(InputError, match=message) as caught:
            read_pairs(tmp_path)
        assert "pairs.csv" in caught.value.where


def test_values_are_read_as_they_are_written(folder):
    """Ids and labels are texts or whole numbers, none of them lost for being zero; sentences are counted once."""
    rows = [
        '{"id": 0, "image": "a.png", "text": ["a dog", "brown dog", "a  dog"], "label": 0}',
        '{"id": "007", "File_Name": "b.png", "caption": "line\u2028break", "labels": ["1_1", "é"]}',
        '{"id": 0, "image": "a.png", "text": "brown dog", "label": "0"}',
    ]
    (folder / "Captions.JSONL").write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    pairs = read_pairs(folder)
    assert pairs.ids == ("0", "007")
    assert pairs.texts == (("a dog", "brown dog"), ("line break",))
    assert pairs.labels == (("0",), ("1_1", "é"))


def test_a_list_of_rows_and_silent_images_of_coco(folder):
    (folder / "captions.json").write_text('[{"image": "a.png", "caption": ["x", "y"]}]')
    assert read_pairs(folder).texts == (("x", "y"),)
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
    captions = [{"image_id": 1, "caption": "A dog."}, {"image_id": 1, "caption": "A dog. "}]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    with pytest.warns(ContrastiveWarning, match="1 of 2 images have no caption"):
        assert read_pairs(folder).texts == (("A dog.",),)


def test_tables_in_a_folder_are_found_and_never_chosen_among(folder):
    (folder / "pairs.tsv").write_text("image\ttext\na.png\ta dog\n")
    assert read_pairs(folder).texts == (("a dog",),)
    (folder / "captions.txt").write_text("a.png\ta dog\n")
    with pytest.raises(InputError, match="several tables"):
        read_pairs(folder)
    (folder / "pairs.tsv").unlink()
    (folder / "captions.txt").write_text("a.png\ta dog\ttwo cats\n")
    with pytest.raises(InputError, match="line 1"):
        read_pairs(folder)


def test_grey_of_sixteen_bits_keeps_its_range(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(8, 0)
    for name in ("a.png", "a.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        read = np.asarray(open_image(tmp_path / name))
        assert (read == np.round(ramp / 257).astype(np.uint8)[..., None]).all()
    for name, values in (("i.tif", ramp.astype(np.int32)), ("f.tif", (ramp / 65535).astype(np.float32))):
        Image.fromarray(values).save(tmp_path / name)
        with pytest.raises(InputError, match="no declared range"):
            open_image(tmp_path / name)


def test_images_come_upright_on_white_in_rgb(tmp_path):
    clear = picture(tmp_path / "clear.png", (255, 0, 0, 0), mode="RGBA")
    assert open_image(clear).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(picture(tmp_path / "grey.png", 7, mode="L")).mode == "RGB"
    turned = Image.new("RGB", (4, 2), "blue")
    exif = turned.getexif()
    exif[274] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (2, 4)
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "two.gif").getpixel((0, 0)) == (255, 0, 0)


def test_broken_images_are_refused_by_name(tmp_path):
    whole = Image.fromarray(RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    whole.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("cut.png", "text.png", "gone.png"):
        with pytest.raises(InputError, match=name):
            open_image(tmp_path / name)


# --- published sets ---------------------------------------------------------------------------------------------------


def lines(path, *content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(content) + "\n")


def test_mirflickr_drops_rare_tags_and_unlabelled_images(tmp_path):
    tags = {1: ["sky", "once"], 2: ["sky", "sea"], 3: ["sea"], 4: ["alone"], 5: ["sky"]}
    for number, each in tags.items():
        picture(tmp_path / f"im{number}.jpg")
        lines(tmp_path / "meta" / "tags" / f"tags{number}.txt", *each)
    lines(tmp_path / "annotations" / "clouds.txt", "1", "2", "4")
    lines(tmp_path / "annotations" / "clouds_r1.txt", "3")
    lines(tmp_path / "annotations" / "water.txt", "2", "3")
    with pytest.warns(ContrastiveWarning, match="3 of 5"):
        found = read_mirflickr(tmp_path, rare=2)
    assert found.ids == ("im1", "im2", "im3")  # im4 has a rare tag only, im5 no label
    assert found.texts == (("sky",), ("sky, sea",), ("sea",))
    assert found.labels == (("clouds",), ("clouds", "water"), ("water",))


def test_nus_wide_keeps_frequent_concepts_and_images_that_are_there(tmp_path):
    lines(tmp_path / "ImageList" / "Imagelist.txt", "actor\\0001_11.jpg", "bird\\0002_22.jpg", "cat\\0003_33.jpg")
    lines(tmp_path / "NUS_WID_Tags" / "All_Tags.txt", "11 a b", "22 c", "33 d")
    folder = tmp_path / "Groundtruth" / "AllLabels"
    for name, column in (("sky", "110"), ("sea", "110"), ("rare", "001")):
        lines(folder / f"Labels_{name}.txt", *column)
    for name in ("actor/0001_11.jpg", "cat/0003_33.jpg"):
        picture(tmp_path / "Flickr" / name)
    with pytest.warns(ContrastiveWarning, match="1 of 3"):
        found = read_nus_wide(tmp_path, concepts=2)
    assert found.ids == ("actor/0001_11.jpg",)
    assert found.texts == (("a, b",),)
    assert found.labels == (("sea", "sky"),)
    lines(folder / "Labels_sea.txt", "0")
    with pytest.raises(InputError, match="labels do not fit"):
        read_nus_wide(tmp_path, concepts=2)


def test_wikipedia_joins_lists_articles_and_images(tmp_path):
    picture(tmp_path / "images" / "art" / "img1.jpg")
    picture(tmp_path / "images" / "music" / "img2.jpg")
    lines(tmp_path / "texts" / "t1.xml", "<document><text>A  painting.</text></document>")
    lines(tmp_path / "texts" / "t2.xml", "<document><text>A song.</text></document>")
    lines(tmp_path / "trainset_txt_img_cat.list", "t1\timg1\t1")
    lines(tmp_path / "testset_txt_img_cat.list", "t2\timg2\t2")
    lines(tmp_path / "categories.list", "art", "music")
    found = read_published(tmp_path)
    assert found.texts == (("A painting.",), ("A song.",))
    assert found.labels == (("art",), ("music",))
    lines(tmp_path / "texts" / "t2.xml", '<!DOCTYPE x [<!ENTITY a "b">]><document>&a;</document>')
    with pytest.raises(InputError, match="entities"):
        read_wikipedia(tmp_path)
    lines(tmp_path / "testset_txt_img_cat.list", "../../x\timg2\t2")
    with pytest.raises(InputError, match="outside"):
        read_wikipedia(tmp_path)


def test_pascal_keeps_its_five_sentences(tmp_path):
    picture(tmp_path / "dog" / "1.jpg")
    lines(tmp_path / "sentence" / "dog" / "1.txt", *(f"sentence {i}" for i in range(5)))
    found = read_pascal(tmp_path)
    assert found.ids == ("dog/1",)
    assert len(found.texts[0]) == 5
    assert found.labels == (("dog",),)


# --- encoders and the cache -------------------------------------------------------------------------------------------


class Counting:
    """An encoder that counts what it is asked."""

    name, fingerprint, dim = "counting", "c", 4

    def __init__(self):
        self.images = self.texts = 0

    def encode_images(self, images):
        self.images += len(images)
        rows = np.stack([np.resize(np.asarray(i, np.float32).mean((0, 1)) + 1, 4) for i in images])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def encode_texts(self, texts):
        self.texts += len(texts)
        rows = np.stack([np.resize([len(t), 1.0, t.count("a")], 4) for t in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_features_are_computed_once_and_anew_when_something_changes(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_table(folder, "jsonl")
    encoder = Counting()
    first = cached_features(read_pairs(folder), encoder, source="s")
    again = cached_features(read_pairs(folder), encoder, source="s")
    assert (encoder.images, encoder.texts) == (3, 4)
    assert np.array_equal(first.image, again.image)
    # Several sentences: the mean of their unit features, at unit length.
    each = encoder.encode_texts(["another", "and again"]).sum(0)
    np.testing.assert_allclose(first.text[1], each / np.linalg.norm(each), rtol=1e-6)
    for shard in (tmp_path / "cache" / "cl-retrieval").iterdir():  # a damaged shard is made anew
        shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.warns(ContrastiveWarning, match="computed anew"):
        repaired = cached_features(read_pairs(folder), encoder, source="s")
    assert np.array_equal(first.image, repaired.image)
    encoder.images = 3
    picture(folder / "a.png", "blue")
    changed = cached_features(read_pairs(folder), encoder, source="s")
    assert encoder.images == 6
    assert not np.array_equal(changed.image[0], first.image[0])
    other = Counting()
    other.fingerprint = "another"
    cached_features(read_pairs(folder), other, source="s")
    assert other.images == 3


def test_an_interrupted_encoding_continues(folder, tmp_path, monkeypatch):
    import cl_retrieval.pairs.embedding as module

    monkeypatch.setattr(module, "SHARD", 1)
    write_table(folder, "jsonl")
    whole = picture(folder / "c.png").read_bytes()
    (folder / "c.png").write_bytes(whole[:20])
    out, encoder = tmp_path / "features.npz", Counting()
    with pytest.raises(InputError, match=r"c\.png"):
        embed_to_file(read_pairs(folder), encoder, out, source="s")
    assert not out.exists()
    (folder / "c.png").write_bytes(whole)
    embed_to_file(read_pairs(folder), encoder, out, source="s")
    assert encoder.images == 3  # the two finished shards were read
    assert len(read_features(out)) == 3
    assert not Path(f"{out}.parts").exists()


def test_open_clip_loads_a_local_folder_and_gives_its_own_features(tiny_clip, tmp_path):
    import open_clip
    import torch

    encoder = load_encoder(f"local-dir:{tiny_clip}")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    image = Image.fromarray(RNG.integers(0, 255, (40, 50, 3), dtype=np.uint8))
    with torch.no_grad():
        expected = model.eval().encode_image(preprocess(image)[None], normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer(f"local-dir:{tiny_clip}")(["a dog"]), normalize=True)
    np.testing.assert_allclose(encoder.encode_images([image]), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_texts(["a dog"]), texts, atol=1e-5)
    assert encoder.dim == 16
    assert encoder.fingerprint == load_encoder(f"local-dir:{tiny_clip}").fingerprint
    assert all(not p.requires_grad for p in encoder.model.parameters())


def test_encoders_that_cannot_be_had_are_refused_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    broken = tmp_path / "weights.safetensors"
    broken.write_bytes(b"no weights")
    cases = {
        "open_clip:NoSuchModel/openai": "knows no such model",
        "open_clip:RN50-quickgelu": "not named",
        f"open_clip:RN50-quickgelu/{broken}": "cannot be loaded",
        f"local-dir:{tmp_path}": "no open_clip model",
        str(tmp_path / "nothing"): "no such encoder",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for source, message in cases.items():
            with pytest.raises(InputError, match=message) as caught:
                load_encoder(source)
            assert caught.value.remedy


def test_weights_with_another_activation_are_refused(monkeypatch):
    import open_clip

    def warns(*_, **__):
        warnings.warn("QuickGELU mismatch between final model config and pretrained tag", UserWarning, stacklevel=2)
        raise AssertionError("the warning is an error, so this is not reached")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", warns)
    with pytest.raises(InputError, match="another activation") as caught:
        load_encoder("open_clip:ViT-B-16/openai")
    assert "ViT-B-16-quickgelu/openai" in caught.value.remedy


def test_the_stand_in_repeats_and_reads_back(tmp_path, monkeypatch):
    import cl_retrieval.encoders.standin as module

    class Sentences:
        def encode(self, texts, **_):
            return np.stack([np.resize([len(t), t.count("e"), t.count("a"), 1.0, 2.0], 6) for t in texts]).astype(
                np.float32
            )

    monkeypatch.setattr(module, "sentence_encoder", Sentences)
    images = [Image.fromarray(RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(12)]
    texts = [f"{'e' * i} text {'a' * (i % 3)}" for i in range(12)]
    encoder = module.fit_standin(images, texts, dim=3)
    encoder.save(tmp_path / "encoder")
    again = load_encoder(str(tmp_path / "encoder"))
    assert again.fingerprint == encoder.fingerprint
    np.testing.assert_allclose(again.encode_images(images), encoder.encode_images(images), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(again.encode_texts(texts), axis=1), 1, rtol=1e-5)
    # Fitted to its own pictures, an image is nearer to its own text than to others on average.
    cosines = encoder.encode_images(images) @ encoder.encode_texts(texts).T
    assert cosines.diagonal().mean() > cosines.mean() + 0.1
    state = (tmp_path / "encoder" / "model.safetensors").read_bytes()
    (tmp_path / "encoder" / "model.safetensors").write_bytes(state[:-8])
    with pytest.raises(InputError, match="corrupt"):
        load_encoder(str(tmp_path / "encoder"))


def test_gradient_histograms_know_directions():
    from cl_retrieval.encoders.standin import describe

    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::8] = 255
    upright, lying = Image.fromarray(stripes), Image.fromarray(stripes.transpose(1, 0, 2))
    found = describe([upright, lying, upright])
    assert np.array_equal(found[0], found[2])
    assert np.linalg.norm(found[0] - found[1]) > 1
