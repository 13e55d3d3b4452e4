"""Objective, views, towers and training."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from cl_video3d.cecl.clips import ClipSettings
from cl_video3d.cecl.echo import EchoSettings
from cl_video3d.cecl.extract import extract
from cl_video3d.cecl.model import EchoModel, EchoNet3D, ModelConfig, embed_clips, load_model, save_model
from cl_video3d.cecl.objective import TARGETS, echo_loss, echo_targets, simclr_loss, view_loss
from cl_video3d.cecl.store import read_store
from cl_video3d.cecl.system import ObjectiveSettings, OptimSettings
from cl_video3d.cecl.training import Clips, clip_shape, train_echo, training_set
from cl_video3d.cecl.views import ViewSettings, echo_preserving_view, simclr_view
from cl_video3d.video.manifest import read_manifest
from contrastive_core.errors import InputError
from contrastive_core.losses import clip_loss, soft_info_nce
from contrastive_core.training import RunFolder, TrainSettings

SHORT = TrainSettings(steps=2, progress=False, log_every=1, threads=1)


def rows(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def echoes(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "echo"
    settings = ClipSettings(frames=8, size=64, clips=4)
    extract(read_manifest(videos), out, clips=settings, echo=EchoSettings(residuals=True), progress=False)
    return read_store(out).at()


# --- invariants 1 and 2 -----------------------------------------------------------------------------------------------


def test_hard_targets_are_info_nce_and_soft_ones_tell_near_echoes():
    z, q, echo = rows(6, 4, 0), rows(6, 4, 1), rows(6, 3, 2)
    expected = clip_loss(z, q, logit_scale=1 / 0.1)
    for target in ("hard", "echo-residual", "pair"):
        torch.testing.assert_close(echo_loss(z, q, echo, target=target), expected)
    for target in ("soft", "kernel-views"):
        torch.testing.assert_close(
            echo_loss(z, q, echo, target=target), soft_info_nce(z, q, echo_targets(echo), temperature=0.1)
        )
    same = torch.zeros(4, 3)  # all echoes alike: every pair is as good as any
    torch.testing.assert_close(echo_targets(same), torch.full((4, 4), 0.25))


def test_limits_of_the_loss():
    eye, echo = torch.eye(8), 100 * rows(8, 3, 3)
    assert float(echo_loss(eye, eye, echo, temperature=0.01)) < 1e-3
    assert float(echo_loss(torch.ones(8, 4), torch.ones(8, 4), echo)) == pytest.approx(math.log(8), rel=1e-5)
    assert float(echo_loss(eye[:1], eye[:1], echo[:1])) == 0


def test_a_queue_only_adds_negatives_to_one_direction():
    z, q, echo = rows(4, 5, 4), rows(4, 5, 5), rows(4, 2, 6)
    old = (rows(3, 5, 7), rows(3, 2, 8) + 50)  # far echoes: no weight, but in the denominator
    for target in ("hard", "soft"):
        plain, longer = (echo_loss(z, q, echo, target=target, queue=queue) for queue in (None, old))
        assert float(longer) > float(plain)
        empty = (old[0][:0], old[1][:0])
        torch.testing.assert_close(echo_loss(z, q, echo, target=target, queue=empty), plain)
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (z, torch.cat([q, old[0]]))]
    forward = -(unit[0] @ unit[1].T / 0.1).log_softmax(1)[range(4), range(4)].mean()
    backward = soft_info_nce(q, z, temperature=0.1, symmetric=False)
    torch.testing.assert_close(echo_loss(z, q, echo, target="hard", queue=old), (forward + backward) / 2)


def test_losses_of_views_are_those_of_the_core():
    a, b = rows(5, 4, 9), rows(5, 4, 10)
    torch.testing.assert_close(view_loss(a, b), clip_loss(a, b, logit_scale=10.0))
    assert float(simclr_loss(a, a, temperature=0.1)) < float(simclr_loss(a, b, temperature=0.1))


# --- views ------------------------------------------------------------------------------------------------------------


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_echo_preserving_views_are_native_pixels():
    clips = torch.randint(0, 256, (6, 8, 64, 64), dtype=torch.uint8, generator=generator(1))
    plain = echo_preserving_view(clips, ViewSettings(luma=0.0), generator())
    assert plain.shape == (6, 4, 32, 32)
    for clip, view in zip(clips, (plain * 255).round().to(torch.uint8), strict=True):
        found = False
        for sides in ((), (1,), (2,), (1, 2)):
            part = view.flip(sides) if sides else view
            for t in range(5):
                corner = clip[t : t + 4]
                equal = (corner[0].unfold(0, 32, 1).unfold(1, 32, 1) == part[0]).all(-1).all(-1)
                for y, x in equal.nonzero().tolist():
                    found |= torch.equal(corner[:, y : y + 32, x : x + 32], part)
        assert found
    lit = echo_preserving_view(clips, ViewSettings(luma=2.0), generator())
    assert (lit - plain).abs().max() <= 2 / 255 + 1e-6
    again = echo_preserving_view(clips, ViewSettings(luma=2.0), generator())
    assert torch.equal(lit, again)


def test_simclr_views_change_what_a_codec_sees():
    y = torch.randint(0, 256, (8, 8, 64, 64), dtype=torch.uint8, generator=generator(2))
    views = simclr_view(y, ViewSettings(), generator())
    assert views.shape == (8, 4, 32, 32)
    assert float(views.min()) >= 0
    assert float(views.max()) <= 1
    kept = echo_preserving_view(y, ViewSettings(), generator())
    gradient = [v.diff(dim=3).abs().mean((1, 2, 3)) for v in (views, kept)]
    assert gradient[0].std() > 4 * gradient[1].std()  # contrast and blur vary, native crops do not


def test_reversed_views_are_an_option():
    clip = torch.arange(8, dtype=torch.uint8).reshape(1, 8, 1, 1).expand(1, 8, 32, 32).contiguous() * 20
    settings = ViewSettings(size=16, frames=8, luma=0.0, reverse=True)
    firsts = {round(float(echo_preserving_view(clip, settings, generator(s))[0, 0, 0, 0] * 255)) for s in range(12)}
    assert firsts == {0, 140}
    plain = dataclasses.replace(settings, reverse=False)
    assert {round(float(echo_preserving_view(clip, plain, generator(s))[0, 0, 0, 0] * 255)) for s in range(12)} == {0}


@pytest.mark.parametrize("settings", [{"size": 8}, {"frames": 2}, {"luma": -1.0}])
def test_views_that_cannot_be_are_refused(settings):
    with pytest.raises(InputError, match="--views"):
        ViewSettings(**settings)
    with pytest.raises(InputError, match="smaller than a view"):
        ViewSettings(size=96).shape((8, 64, 64))


# --- towers -----------------------------------------------------------------------------------------------------------


def test_towers_take_any_size_and_see_motion():
    small = EchoNet3D()
    assert 65_000 < sum(p.numel() for p in small.parameters()) < 90_000
    assert small(torch.rand(2, 16, 96, 80)).shape == (2, 128)
    assert EchoNet3D("base")(torch.rand(1, 8, 32, 32)).shape == (1, 512)
    small.eval()
    still = torch.rand(1, 1, 48, 48).expand(1, 8, 48, 48)
    moved = still.clone()
    moved[:, 4:] = moved[:, 4:].roll(3, dims=3)
    assert not torch.allclose(small(still), small(moved), atol=1e-4)


def test_embedding_is_the_mean_over_a_grid_of_views():
    torch.manual_seed(0)
    model = EchoModel(ModelConfig())
    clips = np.random.default_rng(0).integers(0, 256, (3, 8, 64, 64), dtype=np.uint8)
    found = embed_clips(model, clips, (4, 32, 32), batch=2)
    model.eval()
    views = [
        torch.from_numpy(clips[:, t : t + 4, y : y + 32, x : x + 32]).float() / 255
        for t in (0, 4)
        for y in (0, 32)
        for x in (0, 32)
    ]
    with torch.inference_mode():
        expected = torch.stack([model.encoder(view) for view in views]).mean(0)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert embed_clips(model, clips, (8, 64, 64)).shape == (3, 128)


# --- training ---------------------------------------------------------------------------------------------------------


def trained(echoes, folder, settings=None, **options):
    with RunFolder.create(folder, {}, overwrite=True) as run:
        objective = ObjectiveSettings(**options)
        train = SHORT if settings is None else settings
        model = train_echo(echoes, run=run, objective=objective, batch_size=8, train=train)
        rows = [row["loss"] for row in run.metrics() if "loss" in row]
    return model, rows


@pytest.mark.parametrize(
    "options",
    [
        *({"target": target} for target in TARGETS),
        {"echo": "residual"},
        {"echo": "both"},
        {"echo": "extended"},
        {"echo": "rate"},
        {"echo": "quality"},
        {"method": "simclr"},
        {"method": "instance"},
        {"view_weight": 0.5},
        {"queue": 16},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_every_objective_trains(echoes, tmp_path, options):
    model, losses = trained(echoes, tmp_path / "run", **options)
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_training_brings_clips_next_to_their_echoes(echoes, tmp_path):
    long = TrainSettings(steps=40, progress=False, log_every=1, threads=1)
    model, losses = trained(echoes, tmp_path / "run", long)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1
    from scipy.stats import spearmanr

    y = np.ascontiguousarray(echoes.pixels(range(len(echoes)))[:, :, :64])
    z = embed_clips(model, y, (4, 32, 32))
    rate = np.log2(echoes.measured["bpp"][:, 1])
    distance = [np.linalg.norm(v[:, None] - v[None], axis=-1)[np.triu_indices(len(z), 1)] for v in (z, rate[:, None])]
    assert spearmanr(*distance).statistic > 0.4  # near in embedding, near in rate


def test_training_repeats_bit_for_bit(echoes, tmp_path):
    first, second = (trained(echoes, tmp_path / name)[0].state_dict() for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_sets_too_large_for_memory_are_read_as_needed(echoes, monkeypatch):
    whole = training_set(echoes)
    monkeypatch.setattr("cl_video3d.cecl.training._IN_MEMORY", 0)
    lazy = training_set(echoes)
    assert isinstance(lazy, Clips)
    assert len(lazy) == len(whole) == len(echoes)
    for index in (0, 7):
        for a, b in zip(lazy[index], whole[index], strict=True):
            assert torch.equal(a, b)
    assert clip_shape(echoes) == (8, 64, 64)


def test_models_are_saved_whole(echoes, tmp_path):
    model, _ = trained(echoes, tmp_path / "run")
    with RunFolder.create(tmp_path / "kept", {}) as run:
        save_model(model, run, {"view": [4, 32, 32]})
    again, uses = load_model(tmp_path / "kept")
    assert uses["view"] == [4, 32, 32]
    clips = echoes.pixels([0, 1])[:, :, :64]
    np.testing.assert_array_equal(embed_clips(again, clips, (4, 32, 32)), embed_clips(model, clips, (4, 32, 32)))
    with RunFolder.create(tmp_path / "other", {}) as run:
        run.save_model({}, {"kind": "mpcl"})
    with pytest.raises(InputError, match="another method"):
        load_model(tmp_path / "other")


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (ObjectiveSettings, {"temperature": 0.0}, "--temperature"),
        (ObjectiveSettings, {"sigma": -1.0}, "--sigma"),
        (ObjectiveSettings, {"view_weight": -1.0}, "--view-weight"),
        (ObjectiveSettings, {"method": "simclr", "queue": 8}, "--queue"),
        (ObjectiveSettings, {"target": "kernel-views", "queue": 8}, "--queue"),
        (OptimSettings, {"lr": 0.0}, "--optim.lr"),
        (OptimSettings, {"warmup": 1.0}, "--optim.warmup"),
        (ModelConfig, {"projection": 1}, "--projection"),
    ],
)
def test_settings_out_of_range_are_refused(kind, options, text):
    with pytest.raises(InputError) as error:
        kind(**options)
    assert text in str(error.value)


def test_too_few_clips_are_refused(echoes, tmp_path):
    for part, size in ((echoes.take([0]), 8), (echoes, 1)):
        with RunFolder.create(tmp_path / f"run{size}", {}) as run, pytest.raises(InputError, match="two clips"):
            train_echo(part, run=run, batch_size=size, train=SHORT)
