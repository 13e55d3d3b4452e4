"""Objective, views, towers and training."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from cl_video3d.cecl import ClipSettings, EchoEncoder, Settings, measure_clips, read_echoes, train_echo
from cl_video3d.cecl.data import training_set
from cl_video3d.cecl.model import EchoModel, EchoNet3D, ModelConfig
from cl_video3d.cecl.objective import TARGETS, echo_loss, echo_targets, simclr_loss, view_loss
from cl_video3d.cecl.system import EchoSystem, ObjectiveSettings
from cl_video3d.cecl.views import ViewSettings, echo_preserving_view, simclr_view
from contrastive_core.errors import InputError
from contrastive_core.losses import clip_loss, soft_info_nce
from contrastive_core.training import RunFolder, TrainSettings
from contrastive_core.weights import save_weights

SHORT = TrainSettings(steps=2, progress=False, log_every=1, threads=1)


def rows(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def echoes(echo_folder):
    return dataclasses.replace(read_echoes(echo_folder).at())


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


@pytest.mark.parametrize("settings", [{"size": 8}, {"frames": 2}, {"luma": -1.0}, {"luma": float("nan")}])
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
    encoder = EchoEncoder(EchoModel(ModelConfig()), view=(4, 32, 32), cut=ClipSettings(frames=8, size=64))
    clips = np.random.default_rng(0).integers(0, 256, (3, 8, 64, 64), dtype=np.uint8)
    views = [
        torch.from_numpy(clips[:, t : t + 4, y : y + 32, x : x + 32]).float() / 255
        for t in (0, 4)
        for y in (0, 32)
        for x in (0, 32)
    ]
    with torch.inference_mode():
        expected = torch.stack([encoder.model.encoder(view) for view in views]).mean(0)
    np.testing.assert_allclose(encoder.embed(clips, batch=2), expected.numpy(), atol=1e-5)
    assert encoder.embed(clips[:0]).shape == (0, 128)
    with pytest.raises(InputError, match="smaller than a view"):
        encoder.embed(clips[:, :, :16])


# --- training ---------------------------------------------------------------------------------------------------------


def trained(echoes, run=None, training=SHORT, **options):
    settings = Settings(objective=ObjectiveSettings(**options), batch_size=8, training=training)
    return train_echo(echoes, settings, run, split="train")


def logged(echoes, folder, training=SHORT, **options):
    with RunFolder.create(folder, {}) as run:
        encoder = trained(echoes, run, training, **options)
        return encoder, run.metrics()


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
    encoder, rows = logged(echoes, tmp_path / "run", **options)
    assert len(rows) == 2
    for row in rows:
        terms = [value for name, value in row.items() if name.startswith("loss_")]
        assert np.isfinite(row["loss"])
        assert not terms or sum(terms) == pytest.approx(row["loss"], rel=1e-5)
    assert all(torch.isfinite(p).all() for p in encoder.model.parameters())


@pytest.mark.parametrize(
    ("options", "trains", "spares"),
    [
        ({"target": "soft"}, {"model", "tower"}, set()),
        ({"target": "hard", "queue": 16}, {"model", "tower"}, {"queue"}),
        ({"target": "kernel-views"}, {"model"}, set()),
        ({"target": "echo-residual"}, {"model", "residual_tower"}, set()),
        ({"echo": "both"}, {"model", "tower", "residual_tower"}, set()),
        ({"method": "simclr"}, {"model"}, set()),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_each_objective_moves_its_towers(echoes, options, trains, spares):
    """Every parameter of the towers it has gets a gradient, and no other tower exists."""
    torch.manual_seed(0)
    part = echoes.part("train")
    system = EchoSystem(EchoModel(ModelConfig()), part, Settings(objective=ObjectiveSettings(**options)))
    clips = torch.from_numpy(np.ascontiguousarray(part.pixels(range(8))[:, :, :64]))
    for _ in range(2):  # the second time a queue is filled
        system.zero_grad()
        terms = system.losses(torch.arange(8), clips, generator())
    torch.autograd.backward(list(terms.values()))
    assert {name.partition(".")[0] for name, _ in system.named_parameters()} == trains
    for name, parameter in system.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name
    for name in spares:
        assert len(getattr(system, name)) == 16


def test_training_brings_clips_next_to_their_echoes(echoes, tmp_path):
    long = TrainSettings(steps=40, progress=False, log_every=1, threads=1)
    everything = dataclasses.replace(echoes, clips=tuple(dataclasses.replace(clip, split="") for clip in echoes.clips))
    with RunFolder.create(tmp_path / "run", {}) as run:
        encoder = train_echo(everything, Settings(batch_size=8, training=long), run)
        losses = [row["loss"] for row in run.metrics()]
    assert encoder.split == "all"
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.1
    from scipy.stats import spearmanr

    z = encoder.embed_echoes(echoes)
    rate = np.log2(echoes.measured["bpp"][:, 1])
    distance = [np.linalg.norm(v[:, None] - v[None], axis=-1)[np.triu_indices(len(z), 1)] for v in (z, rate[:, None])]
    assert spearmanr(*distance).statistic > 0.4  # near in embedding, near in rate


def test_training_in_memory_and_in_a_folder_is_the_same(echoes, tmp_path):
    """Bit for bit, and the global generator is left as it was."""
    before = torch.get_rng_state()
    held = dataclasses.replace(echoes, frames=echoes.pixels(range(len(echoes))), folder=tmp_path)
    first, second = (e.model.state_dict() for e in (trained(held), logged(echoes, tmp_path / "run")[0]))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), before)


def test_sets_too_large_for_memory_are_read_as_needed(echoes, monkeypatch):
    whole = training_set(echoes)
    monkeypatch.setattr("cl_video3d.cecl.data._IN_MEMORY", 0)
    lazy = training_set(echoes)
    assert type(lazy) is not type(whole)
    assert len(lazy) == len(whole) == len(echoes)
    for index in (0, 7):
        for a, b in zip(lazy[index], whole[index], strict=True):
            assert torch.equal(a, b)
    assert echoes.clip_shape() == (8, 64, 64)


def test_encoders_are_saved_whole(echoes, tmp_path):
    encoder = trained(echoes)
    encoder.save(tmp_path / "kept")
    again = EchoEncoder.load(tmp_path / "kept", device="cpu")
    assert (again.view, again.cut, again.codec, again.split) == ((4, 32, 32), echoes.cut, "h264", "train")
    assert again.fingerprint() == encoder.fingerprint()
    np.testing.assert_array_equal(again.embed_echoes(echoes), encoder.embed_echoes(echoes))
    save_weights(tmp_path / "other", {}, {"kind": "mpcl"})
    with pytest.raises(InputError, match="holds no cecl"):
        EchoEncoder.load(tmp_path / "other")
    for name, value in (("view", "wide"), ("config", {"network": "huge"}), ("clips", {})):
        save_weights(
            tmp_path / "bad", encoder.model.state_dict(), {"kind": "cecl", **encoder.description(), name: value}
        )
        with pytest.raises(InputError, match="bad"):
            EchoEncoder.load(tmp_path / "bad")


def test_the_readme_in_python():
    """Five lines on arrays: echoes of clips in memory, an encoder, embeddings."""
    rng = np.random.default_rng(0)
    clips = rng.integers(16, 236, (6, 8, 96, 64), dtype=np.uint8)
    echoes = measure_clips(clips)
    encoder = train_echo(echoes, Settings(batch_size=4, training=SHORT))
    assert encoder.embed(clips[:, :, :64]).shape == (6, 128)


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (ObjectiveSettings, {"temperature": 0.0}, "--temperature"),
        (ObjectiveSettings, {"sigma": -1.0}, "--sigma"),
        (ObjectiveSettings, {"view_weight": -1.0}, "--view-weight"),
        (ObjectiveSettings, {"method": "simclr", "queue": 8}, "--queue"),
        (ObjectiveSettings, {"target": "kernel-views", "queue": 8}, "--queue"),
        (ObjectiveSettings, {"temperature": float("nan")}, "--temperature"),
        (Settings, {"batch_size": 1}, "--batch-size"),
        (ModelConfig, {"projection": 1}, "--projection"),
    ],
)
def test_settings_out_of_range_are_refused(kind, options, text):
    with pytest.raises(InputError) as error:
        kind(**options)
    assert text in str(error.value)


def test_clips_that_cannot_be_trained_on_are_refused(echoes, echo_folder):
    with pytest.raises(InputError, match="two clips"):
        train_echo(echoes.take([0]), Settings(training=SHORT))
    with pytest.raises(InputError, match="no clips of that split"):
        train_echo(echoes, Settings(training=SHORT), split="val")
    with pytest.raises(InputError, match="smaller than a view"):
        train_echo(echoes, Settings(training=SHORT, views=ViewSettings(size=96)))
    shards = sorted({clip.residual_shard for clip in echoes.clips})
    bare = dataclasses.replace(
        echoes, clips=tuple(dataclasses.replace(clip, residual_shard="") for clip in echoes.clips)
    )
    assert all(shards)
    with pytest.raises(InputError, match="not kept"):
        trained(bare, echo="residual")


# --- processes --------------------------------------------------------------------------------------------------------


def _loss_of_a_process(rank, world, folder, options, queue):
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    torch.set_num_threads(1)
    everything = [rows(6, 5, seed) for seed in (0, 1, 2)]
    own = slice(0, 4) if rank == 0 else slice(4, 6)  # parts of unlike size
    z, partner = (each[own].clone().requires_grad_() for each in everything[:2])
    loss = echo_loss(z, partner, everything[2][own], gather=True, queue=queue, **options)
    loss.backward()
    torch.save((loss.detach(), z.grad / world, partner.grad / world), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("target", ["soft", "hard"])
def test_two_processes_have_the_loss_of_one(tmp_path, target):
    """With a queue; gradients are averaged over processes, as in data-parallel training."""
    queue = (rows(3, 5, 7), rows(3, 5, 8))
    z, partner, echo = (rows(6, 5, seed) for seed in (0, 1, 2))
    z.requires_grad_()
    partner.requires_grad_()
    loss = echo_loss(z, partner, echo, target=target, queue=queue)
    loss.backward()
    torch.multiprocessing.start_processes(
        _loss_of_a_process, (2, str(tmp_path), {"target": target}, queue), nprocs=2, start_method="fork"
    )
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for part in parts:
        torch.testing.assert_close(part[0], loss.detach())
    for place, expected in ((1, z.grad), (2, partner.grad)):
        torch.testing.assert_close(torch.cat([part[place] for part in parts]), expected)
