"""Tiny images, and runs of every method on them that tests share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cl_foundations.cfa import FactorEncoder, ModelConfig, Settings, train_factors
from cl_foundations.cli import app
from cl_foundations.images import ViewSettings, read_images, write_samples
from contrastive_core.training import TrainSettings
from PIL import Image

TINY = ("--backbone", "tiny", "--image-size", "16", "--hidden", "16", "--factors", "8", "--no-progress")
SHORT = ("--steps", "3", "--batch-size", "16", "--log-every", "1")


def tiny_cfa(folder: Path) -> Path:
    """Dark and bright images of 16 pixels in a training and a test part."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for label, name in enumerate(("dark", "bright")):
            for index in range(count):
                file = folder / "images" / part / name / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = generator.integers(120 * label, 120 * label + 100, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(file)
    return folder / "images"


def run(*words):
    """A command line of the method."""
    return app.run(["cfa", *map(str, words)])


def tiny_settings(method="cfa", likelihood="infonce", **options):
    """Settings that train in no time."""
    training = TrainSettings(steps=2, progress=False, log_every=1)
    model = ModelConfig(method, likelihood, backbone="tiny", image_size=16, hidden=16, factors=8)
    return Settings(**{"model": model, "batch_size": 8, "training": training, "views": ViewSettings(), **options})


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with labelled images in parts, unlabelled ones, and a run of some methods."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cfa")
    tiny_cfa(folder).rename(folder / "data")
    (folder / "flat").mkdir()
    generator = np.random.default_rng(0)
    for index in range(9):
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / "flat" / f"{index}.png")
    assert run("train", folder / "data", folder / "cnfa", "--method", "cnfa", *TINY, *SHORT) == 0
    images = read_images(folder / "data", 16, split="train")
    for name, settings in {
        "simclr": tiny_settings("simclr"),
        "cfa": tiny_settings("cfa"),
        "spectral": tiny_settings("cfa", "spectral_exact"),
    }.items():
        train_factors(images, settings).save(folder / name)
    return folder


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    """The sample images: digits and photographs."""
    return write_samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="session")
def encoder(place):
    """The trained encoder of CNFA."""
    return FactorEncoder.load(place / "cnfa", device="cpu")
