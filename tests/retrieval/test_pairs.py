"""Reading pairs and features: every layout, and every way in which they can be unusable."""

import json
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
    "labels": ({"image": X, "text": Y, "labels": L[:5]}, "labels do not fit"),
    "no text": ({"image": X}, "no text features"),
    "pixels": ({"image": np.zeros((6, 3, 8, 8)), "text": Y}, "no matrix"),
    "objects": ({"image": np.array([{}, {}], dtype=object), "text": Y}, "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_unusable_features_are_refused(tmp_path, case):
    arrays, message = BAD[case]
    path = tmp_path / "f.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message) as caught:
        read_features(path)
    assert "f.npz" in str(caught.value)


def test_mixed_rows_pass_where_asked(tmp_path):
    np.savez(tmp_path / "f.npz", image=X, text=3 * Y)
    np.testing.assert_allclose(read_features(tmp_path / "f.npz", normalise=True).text, Y, atol=1e-6)


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
        ('{"id": "1", "image": "a.png", "text": "fine"}', "twice"),
        ('{"id": "../2", "image": "b.png", "text": "x"}', "not usable as a name"),
        ('{"id": "2", "image": "../../b.png", "text": "x"}', "outside the folder"),
        ('{"id": "2", "image": "/etc/hostname", "text": "x"}', "outside the folder"),
        ("{broken", "cannot be read"),
        ("[1]", "cannot be read"),
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
    (tmp_path / "pairs.csv").write_text("file,caption\na,b\n")
    with pytest.raises(InputError, match="lacks a column"):
        read_pairs(tmp_path)


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
