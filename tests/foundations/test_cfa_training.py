"""Training, the trained encoder and the estimator from Python, and how system, optimiser and objective are wired."""

import dataclasses

import numpy as np
import pytest
import torch
from cl_foundations.cfa import (
    ContrastiveFactorAnalysis,
    EmbedSettings,
    FactorEncoder,
    FactorModel,
    FactorOptim,
    GammaPrior,
    ModelConfig,
    ObjectiveSettings,
    Settings,
    negative_elbo,
    train_factors,
)
from cl_foundations.cfa.evaluation import calibration
from cl_foundations.cfa.posterior import NormalPosterior, PointPosterior, WeibullPosterior
from cl_foundations.cfa.system import FactorSystem
from cl_foundations.images import ViewSettings, image_set, read_images, two_views
from contrastive_core.errors import InputError
from contrastive_core.training import TrainSettings, step_generator
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from tests.foundations.conftest import tiny_settings


def pictures(count=12, seed=0):
    """Dark and bright images in turn."""
    generator = np.random.default_rng(seed)
    return np.stack(
        [generator.integers(120 * (i % 2), 120 * (i % 2) + 100, (16, 16, 3), np.uint8) for i in range(count)]
    )


class Trainer:
    """What a training step asks of its trainer."""

    def __init__(self, step=3, steps=10, accumulate=1, seed=0):
        self.global_step, self.max_steps = step, steps
        self.accumulate_grad_batches, self.seed = accumulate, seed


def stepping(settings, monkeypatch, **trainer):
    """A system outside of any trainer, and what it logs."""
    torch.manual_seed(0)
    system, logged = FactorSystem(FactorModel(settings.model), settings), {}
    monkeypatch.setattr(FactorSystem, "trainer", Trainer(**trainer))
    monkeypatch.setattr(FactorSystem, "global_step", trainer.get("step", 3))
    monkeypatch.setattr(FactorSystem, "global_rank", 0)
    system.log = lambda name, value, **_: logged.update({name: value.detach()})
    system.log_dict = lambda values: logged.update(values)
    return system, logged


def batch(count=8):
    images = torch.from_numpy(pictures(count)).permute(0, 3, 1, 2).contiguous()
    return [images, torch.arange(count) % 2]


@pytest.mark.parametrize("likelihood", ["infonce", "spectral_exact", "spectral_mc"])
@pytest.mark.parametrize("method", ["simclr", "ncl", "cfa", "cnfa"])
def test_every_method_trains_with_every_likelihood(method, likelihood):
    encoder = train_factors(image_set(pictures()), tiny_settings(method, likelihood))
    kind = {"cfa": NormalPosterior, "cnfa": WeibullPosterior}.get(method, PointPosterior)
    posterior = encoder.model(torch.rand(2, 3, 16, 16))
    assert isinstance(posterior, kind)
    assert method not in ("ncl", "cnfa") or (posterior.mean() >= 0).all()


@pytest.mark.parametrize(
    ("method", "activation"), [("ncl", "relu"), ("ncl", "softplus"), ("cnfa", "rep_relu"), ("cnfa", "softplus")]
)
def test_activations_keep_factors_non_negative(method, activation):
    config = dataclasses.replace(tiny_settings(method).model, activation=activation)
    assert (FactorModel(config)(torch.rand(3, 3, 16, 16)).mean() >= 0).all()


def test_training_learns(place):
    images = read_images(place / "data", 16, split="train")
    losses = []
    step = FactorSystem.training_step

    def remember(self, batch, index):
        losses.append(step(self, batch, index))
        return losses[-1]

    still = ViewSettings(jitter_share=0.0, gray=0.0)  # here brightness is the class
    settings = tiny_settings("cfa", batch_size=24, views=still, training=TrainSettings(steps=40, progress=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FactorSystem, "training_step", remember)
        train_factors(images, settings)
    values = [float(loss.detach()) for loss in losses]
    assert np.mean(values[-10:]) < np.mean(values[:10]) - 0.1


def test_the_step_is_the_objective_of_its_settings(monkeypatch):
    """Every setting arrives where it belongs: a swapped prior, a lost temperature or weight would change the value."""
    objective = ObjectiveSettings(eta=0.7, kl_warmup=0.6, temperature=0.3, samples=2, prior_shape=0.4, prior_rate=2.5)
    settings = tiny_settings("cnfa", objective=objective)
    system, logged = stepping(settings, monkeypatch)
    loss = system.training_step(batch(), 0)
    draw = step_generator(system, 0)
    torch.manual_seed(0)
    views = two_views(batch()[0], 16, settings.views, draw)
    first, second = FactorModel(settings.model)(views).halves()
    expected = negative_elbo(
        first,
        second,
        eta=0.7 * 3 / 6,  # step 3 of a warm-up over 6 of 10 steps
        temperature=0.3,
        samples=2,
        prior=GammaPrior(concentration=0.4, rate=2.5),
        generator=draw,
    )
    torch.testing.assert_close(loss, expected.loss)
    torch.testing.assert_close(logged["likelihood"] + 0.35 * logged["kl"], logged["loss"])


def test_classes_are_positives_when_asked(monkeypatch):
    values = []
    for supervised in (False, True):
        settings = tiny_settings("simclr", objective=ObjectiveSettings(supervised=supervised))
        system, _ = stepping(settings, monkeypatch)
        images, labels = batch()
        values += [float(system.training_step([images, each], 0).detach()) for each in (labels, 0 * labels)]
    assert values[0] == values[1]
    assert values[2] != values[3]


def test_micro_batches_and_steps_have_views_of_their_own(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "cl_foundations.cfa.system.two_views",
        lambda images, side, settings, draw: seen.append(two_views(images, side, settings, draw)) or seen[-1],
    )
    for options, index in (({}, 0), ({}, 1), ({"step": 4}, 0), ({"seed": 1}, 0), ({}, 0)):
        system, _ = stepping(tiny_settings("simclr"), monkeypatch, accumulate=2, **options)
        system.training_step(batch(), index)
    first, *others, again = seen
    assert torch.equal(first, again)
    for other in others:
        assert not torch.equal(first, other)
    assert not torch.equal(*first.chunk(2))


@pytest.mark.parametrize("name", ["adamw", "lars"])
def test_biases_and_norms_do_not_decay(monkeypatch, name):
    settings = tiny_settings(optim=FactorOptim(name=name, weight_decay=0.3), batch_size=64)
    system, _ = stepping(settings, monkeypatch, steps=20)
    plan = system.configure_optimizers()
    decays, others = plan["optimizer"].param_groups
    assert (decays["weight_decay"], others["weight_decay"]) == (0.3, 0)
    assert {p.ndim > 1 for p in decays["params"]} == {True}
    assert {p.ndim > 1 for p in others["params"]} == {False}
    assert sum(len(group["params"]) for group in (decays, others)) == len(list(system.parameters()))
    peak = 2e-3 if name == "adamw" else 0.4 * 64 / 256
    assert decays["initial_lr"] == others["initial_lr"] == pytest.approx(peak)
    assert 0 < decays["lr"] < peak
    assert type(plan["optimizer"]).__name__ == {"adamw": "AdamW", "lars": "Lars"}[name]


def test_the_batch_size_of_lars_is_that_of_the_images():
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FactorOptim, "peak", lambda _, size: seen.append(size) or 1e-3)
        train_factors(image_set(pictures()), tiny_settings(optim=FactorOptim(name="lars"), batch_size=256))
    assert seen[-1] == 12


def test_temperature_is_fitted_on_rows_the_probe_has_not_seen():
    """With labels that mean nothing the probe is sure of what it has learnt by heart, and wrong elsewhere."""
    generator = np.random.default_rng(0)
    z, z_test = (generator.normal(size=(count, 200)) for count in (150, 300))
    y, y_test = (generator.integers(0, 2, count) for count in (150, 300))
    assert calibration(z, y, z_test, y_test) < 0.15


def test_the_encoder_is_read_as_it_was_saved(place, tmp_path):
    images = read_images(place / "data", 16, split="test")
    settings = tiny_settings("cnfa", objective=ObjectiveSettings(prior_shape=0.5, prior_rate=2.0))
    encoder = train_factors(images, settings)
    encoder.save(tmp_path / "model")
    again = FactorEncoder.load(tmp_path / "model", device="cpu")
    assert again.prior == GammaPrior(concentration=0.5, rate=2.0)
    one, other = (each.embed(images) for each in (encoder, again))
    for name in ("features", "mean", "variance"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name, values in one.scores.items():
        np.testing.assert_array_equal(values, other.scores[name])
    assert set(one.scores) == {"entropy", "cv", "var_dir", "kl", "norm"}


def test_a_folder_of_another_kind_is_refused(place, tmp_path):
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(InputError, match="weights are missing"):
        FactorEncoder.load(tmp_path)
    text = (place / "cfa" / "model.json").read_text()
    for old, new in (('"hidden": 16', '"hidden": 99999'), ('"factors": 8', '"factors": "x"'), ('"cfa"', '"banana"')):
        (tmp_path / "model.json").write_text(text.replace(old, new))
        (tmp_path / "model.safetensors").write_bytes((place / "cfa" / "model.safetensors").read_bytes())
        with pytest.raises(InputError):
            FactorEncoder.load(tmp_path)


def test_arrays_and_sets_are_embedded_alike(encoder):
    x = pictures(6)
    by_array, by_set = encoder.embed(x), encoder.embed(image_set(x))
    np.testing.assert_array_equal(by_array.mean, by_set.mean)
    halves = encoder.embed(x, EmbedSettings(images_at_once=3))
    np.testing.assert_allclose(halves.mean, by_array.mean, rtol=1e-4, atol=1e-6)
    larger = np.repeat(np.repeat(x, 2, 1), 2, 2)
    assert encoder.embed(larger).mean.shape == (6, 8)


def test_a_classifier_names_classes(encoder, place):
    images = read_images(place / "data", 16)
    rows = encoder.classifier(images).predict(images.take([0, 20]))
    assert {row["class"] for row in rows} <= {"dark", "bright"}
    assert [row["path"] for row in rows] == [images.ids[0], images.ids[20]]


class TestEstimator:
    def estimator(self, **options):
        return ContrastiveFactorAnalysis(factors=4, hidden=8, epochs=1, batch_size=6, **{"random_state": 0, **options})

    def test_it_is_what_scikit_learn_expects(self):
        images = pictures()
        state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        one = self.estimator(method="cfa").fit(images)
        assert torch.equal(torch.get_rng_state(), state[0])
        np.testing.assert_array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
        other = clone(one)
        assert other.get_params() == one.get_params()
        with pytest.raises(NotFittedError):
            other.transform(images)
        np.testing.assert_array_equal(other.fit_transform(images), one.transform(images))
        assert one.embed(images).variance.shape == (12, 4)
        assert not np.array_equal(self.estimator(random_state=1).fit(images).transform(images), one.transform(images))

    def test_no_seed_and_generators_serve(self):
        for seed in (None, np.random.RandomState(3), np.int64(3)):
            assert self.estimator(random_state=seed).fit(pictures()).transform(pictures()).shape == (12, 4)

    def test_what_does_not_fit_is_refused(self):
        images = pictures()
        with pytest.raises(InputError, match="one integer or name an image"):
            self.estimator().fit(images, np.zeros(5, int))
        fitted = self.estimator().fit(images)
        for wrong in (images[..., :1], images[:, :8], images[..., 0]):
            with pytest.raises(InputError, match="another shape"):
                fitted.transform(wrong)
        with pytest.raises(InputError, match="8 or 16 bits"):
            self.estimator().fit(images / 255)
        supervised = Settings(objective=ObjectiveSettings(supervised=True))
        with pytest.raises(InputError, match="needs labels"):
            self.estimator(method="simclr", settings=supervised).fit(images)


@pytest.mark.parametrize(
    ("name", "width"), [("timm:resnet10t", 512), ("torchvision:mobilenet_v3_small", 1024), ("resnet18-cifar", 512)]
)
def test_backbones_of_both_libraries(name, width):
    model = FactorModel(ModelConfig(method="cfa", backbone=name, image_size=32, hidden=8, factors=4))
    assert model.width == width
    assert model.train()(torch.rand(2, 3, 32, 32)).mean().shape == (2, 4)


def test_images_smaller_than_the_network_allows_are_refused():
    with pytest.raises(InputError, match="does not take images of this size"):
        FactorModel(ModelConfig(method="cfa", backbone="torchvision:alexnet", image_size=16, factors=4))
