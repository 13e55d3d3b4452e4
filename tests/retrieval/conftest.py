"""Small models and sets that several tests of retrieval share."""

import json

import pytest


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """A folder as open_clip saves a model: a CLIP of two narrow layers with random weights."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    described = {"model_cfg": config, "preprocess_cfg": {"mean": mean, "std": std}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    return folder


def tiny_pairs(folder):
    """Features of 24 labelled pairs, and of four attributes beside them, that train in a second."""
    import numpy as np
    from cl_retrieval.pairs import PairFeatures, write_features

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    points = np.eye(12)[np.arange(24) % 3] + 0.2 * rng.normal(size=(24, 12))
    views = (points + 0.2 * rng.normal(size=points.shape) for _ in range(2))
    write_features(folder / "pairs.npz", PairFeatures.from_arrays(*views, np.arange(24) % 3))
    np.save(folder / "attributes.npy", np.eye(12, dtype=np.float32)[:4])
    (folder / "attributes.txt").write_text("red\ngreen\nblue\nround\n")
    return folder / "pairs.npz"


def tiny_gnah(folder):
    """Data of a tiny training of GNAH."""
    return tiny_pairs(folder)


def tiny_apkh(folder):
    """Data of a tiny training of APKH; the attributes lie beside it."""
    return tiny_pairs(folder)
