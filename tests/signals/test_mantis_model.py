"""The encoder: parameter counts, agreement with the original implementation, invariances, weight files."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cl_signals.mantis.adapters import (
    LinearChannelCombiner,
    MultichannelProjector,
    VarianceBasedSelector,
    parse_adapter,
)
from cl_signals.mantis.inference import Readout, embed
from cl_signals.mantis.model import Mantis, MantisConfig
from cl_signals.mantis.objective import mantis_contrastive
from cl_signals.mantis.tokens import ConvPatches, ScalarEncoder
from cl_signals.mantis.views import ViewSettings, random_crop_resize
from cl_signals.mantis.weights import import_state, read_state
from cl_signals.series import resize
from contrastive_core.errors import InputError
from mantis.architecture import MantisV1, MantisV2

ORIGINAL = {"v1": MantisV1, "v2": MantisV2}
TOKENS = {"cls": "cls_token", "mean": "mean_token", "combined": "combined"}


@pytest.fixture
def series():
    x = torch.randn(6, 1, 512, generator=torch.Generator().manual_seed(0)).cumsum(-1) * 3
    x[3] = 2.0  # a constant series
    return x


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return Mantis(MantisConfig.preset("tiny")).eval()


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_counts():
    assert count(Mantis(MantisConfig.preset("v1"))) == 8_103_936
    v2 = Mantis(MantisConfig.preset("v2"))
    assert count(v2) == 4_188_672
    assert count(v2.truncated(2)) == 2_214_144


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_agrees_with_the_original_at_every_layer_and_token(version, series):
    torch.manual_seed(1)
    state = ORIGINAL[version](device="cpu", pre_training=True).state_dict()
    ours, report = import_state(state)
    assert (report.missing, report.unexpected) == ([], [])
    body = {name: value for name, value in state.items() if not name.startswith("prj.")}
    for layer in (-1, 0, 1, 2, 3, 4, 5):
        for token, name in TOKENS.items():
            theirs = ORIGINAL[version](device="cpu", return_transf_layer=layer, output_token=name).eval()
            theirs.load_state_dict(body, strict=False)
            with torch.no_grad():
                torch.testing.assert_close(ours(series, layer=layer, token=token), theirs(series), atol=1e-5, rtol=0)
    trainer = ORIGINAL[version](device="cpu", pre_training=True).eval()
    trainer.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(ours.project(series), trainer(series), atol=1e-5, rtol=0)


def test_patches_and_their_gradients_equal_the_literal_convolution():
    torch.manual_seed(0)
    part = ConvPatches(12, 5, 4).double()
    torch.nn.init.normal_(part.norm.weight)
    x = torch.randn(3, 32, dtype=torch.double, requires_grad=True)

    def literal(x):
        y = F.conv1d(x[:, None], part.weight[:, None], part.bias, padding=2).transpose(1, 2)
        return part.norm(y).unflatten(1, (4, 8)).mean(2)

    torch.testing.assert_close(part(x), literal(x), atol=1e-9, rtol=0)
    weights = [x, *part.parameters()]
    probe = torch.randn(3, 4, 12, dtype=torch.double)
    for ours, theirs in zip(
        torch.autograd.grad((part(x) * probe).sum(), weights),
        torch.autograd.grad((literal(x) * probe).sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-6)


def test_scalar_encoder_is_finite_and_mixes_to_one():
    encoder = ScalarEncoder()
    x = torch.tensor([0.0, 1e-12, -1e-12, 1e8, -1e8, 1.0])
    assert torch.isfinite(encoder(x)).all()
    torch.testing.assert_close(encoder.mixture(x).sum(-1), torch.ones(6))
    # Far below every scale all weights tend to 1 / ln 1.1, so they are equal once normalised.
    torch.testing.assert_close(encoder.mixture(torch.zeros(1)), torch.full((1, 9), 1 / 9))


def test_shift_moves_only_the_mean_branch_and_scale_only_the_statistics(tiny):
    x = torch.randn(2, 512, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    tokens = tiny.tokens
    z = lambda v: (v - v.mean(1, keepdim=True)) / (v.std(1, keepdim=True) + 1e-5)  # noqa: E731
    for branch in (tokens.values, tokens.differences):
        torch.testing.assert_close(branch(z(x)), branch(z(x + 7)), atol=1e-4, rtol=0)
        torch.testing.assert_close(branch(z(x)), branch(z(3 * x)), atol=1e-3, rtol=1e-3)
    patches = x.unflatten(1, (32, -1))
    assert not torch.allclose(tokens.mean(patches.mean(-1)), tokens.mean(patches.mean(-1) + 7), atol=1e-2)
    assert not torch.allclose(tokens.std(patches.std(-1)), tokens.std(3 * patches.std(-1)), atol=1e-2)


def test_combined_is_both_tokens_and_the_last_layer_is_minus_one(tiny, series):
    with torch.no_grad():
        both = torch.cat([tiny(series, token="cls"), tiny(series, token="mean")], 1)
        torch.testing.assert_close(tiny(series, token="combined"), both, atol=1e-5, rtol=0)
        assert torch.equal(tiny(series, layer=2), tiny(series, layer=-1))
        torch.testing.assert_close(tiny.truncated(1)(series), tiny(series, layer=1))


def test_channels_are_encoded_on_their_own(tiny):
    x = np.random.default_rng(0).normal(size=(3, 4, 100)).astype(np.float32)
    z = embed(tiny, x)
    np.testing.assert_allclose(embed(tiny, x[:, [2, 0, 3, 1]]), z[:, [2, 0, 3, 1]], atol=1e-5)
    assert z.shape == (3, 4, 256)
    assert embed(tiny, x, Readout(sizes=(256, 512))).shape == (3, 4, 512)


def test_constant_series_and_low_precision_are_finite_and_close(tiny, series):
    exact = embed(tiny, series.numpy())
    half = embed(tiny, series.numpy(), Readout(precision="bf16"))
    assert np.isfinite(exact).all()
    cosine = (exact * half).sum(-1) / np.linalg.norm(exact, axis=-1) / np.linalg.norm(half, axis=-1)
    assert cosine.min() > 0.99


def test_embedding_ignores_the_mode_the_model_was_left_in(tiny, series):
    expected = embed(tiny, series.numpy())
    assert np.array_equal(embed(tiny.train(), series.numpy()), expected)


@pytest.mark.unchecked
def test_bad_series_are_refused(tiny):
    x = np.zeros((2, 1, 64), np.float32)
    for bad in (x[0], x[:0], np.where(np.arange(64) == 3, np.nan, x)):
        with pytest.raises(InputError):
            embed(tiny, bad)
    for sizes in ((100,), (32,), ()):
        with pytest.raises(InputError):
            embed(tiny, x, Readout(sizes=sizes))
    with pytest.raises(InputError, match="--layer"):
        embed(tiny, x, Readout(layer=3))
    with pytest.raises(InputError, match="one length"):
        Mantis(MantisConfig.preset("v1")).eval()(torch.zeros(1, 1, 256))


def test_crop_without_rate_is_the_identity_and_keeps_ramps():
    x = torch.arange(64.0).expand(3, 1, 64)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(random_crop_resize(x, ViewSettings(crop=0.0), generator), x)
    cropped = random_crop_resize(x, ViewSettings(), generator)[0, 0]
    slope = cropped[2:-2].diff()
    torch.testing.assert_close(slope, slope[:1].expand_as(slope), atol=1e-4, rtol=0)
    together = random_crop_resize(x, ViewSettings(), generator)
    assert torch.equal(together[0], together[1])
    apart = random_crop_resize(x, ViewSettings(per_sample=True), generator)
    assert not torch.equal(apart[0], apart[1])


def test_crop_equals_interpolation_of_the_window():
    x = torch.randn(1, 1, 100, generator=torch.Generator().manual_seed(0))
    windows = {
        (length, start): F.interpolate(x[..., start : start + length], size=100, mode="linear")
        for length in range(80, 101)
        for start in range(101 - length)
    }
    for seed in range(5):
        cropped = random_crop_resize(x, ViewSettings(crop=0.2), torch.Generator().manual_seed(seed))
        assert min(float((window - cropped).abs().max()) for window in windows.values()) < 1e-5


def test_resize_keeps_ramps_inside_the_borders():
    y = resize(torch.arange(32.0)[None, None], 100)[0, 0].diff()
    torch.testing.assert_close(y[3:-3], torch.full_like(y[3:-3], 0.32), atol=1e-4, rtol=0)


def test_objective_closed_forms():
    eye = torch.eye(5)
    torch.testing.assert_close(mantis_contrastive(eye, eye), torch.log1p(4 * torch.exp(torch.tensor(-10.0))))
    torch.testing.assert_close(mantis_contrastive(torch.ones(5, 3), torch.ones(5, 3)), torch.log(torch.tensor(5.0)))
    q = torch.randn(5, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(mantis_contrastive(q, torch.randn(5, 3)), q)
    torch.testing.assert_close((grad * q).sum(1), torch.zeros(5), atol=1e-6, rtol=0)


def test_save_and_load(tiny, series, tmp_path):
    tiny.save(tmp_path / "m")
    with torch.no_grad():
        assert torch.equal(Mantis.load(tmp_path / "m")(series), tiny(series))
    with pytest.raises(InputError, match="missing"):
        Mantis.load(tmp_path / "nothing")


class Malicious:
    def __reduce__(self):
        return (print, ("code of a stranger ran",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"state_dict": Malicious()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Malicious()))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(InputError):
            read_state(tmp_path / name)
    assert "ran" not in capsys.readouterr().out


def test_import_reports_what_does_not_fit(tmp_path):
    from safetensors.torch import save_file

    state = MantisV2(device="cpu", pre_training=True).state_dict()
    save_file({name: value.clone().contiguous() for name, value in state.items()}, tmp_path / "w.safetensors")
    assert import_state(read_state(tmp_path / "w.safetensors"))[1].missing == []
    broken = copy.copy(state)
    del broken["prj.1.bias"]
    broken["extra"] = torch.zeros(1)
    with pytest.raises(InputError, match=r"projector\.1\.bias.*extra"):
        import_state(broken)
    assert import_state(broken, strict=False)[1].unexpected == ["extra"]
    with pytest.raises(InputError, match="not one of Mantis"):
        import_state({"x": torch.zeros(1)})
    (tmp_path / "w.safetensors").write_bytes(b"123")
    with pytest.raises(InputError, match="cannot be read"):
        read_state(tmp_path / "w.safetensors")


def test_adapters():
    x = np.random.default_rng(0).normal(size=(6, 5, 40)).astype(np.float32)
    full = MultichannelProjector(5).fit(x).transform(x)
    steps, projected = (v.transpose(0, 2, 1).reshape(-1, 5) for v in (x, full))
    distance = lambda v: np.linalg.norm(v[:50, None] - v[None, :50], axis=-1)  # noqa: E731
    np.testing.assert_allclose(distance(steps), distance(projected), atol=1e-4)
    for base in ("pca", "svd", "rand"):
        assert MultichannelProjector(2, base, window=4).fit(x).transform(x).shape == (6, 2, 40)
    x[:, 3] *= 10
    x[:, 1] *= 5
    assert np.array_equal(VarianceBasedSelector(2).fit(x).transform(x), x[:, [1, 3]])
    combiner = LinearChannelCombiner(5, 5)
    with torch.no_grad():
        combiner.weight.copy_(torch.eye(5))
        combiner.bias.zero_()
        torch.testing.assert_close(combiner(torch.from_numpy(x)), torch.from_numpy(x))
    for text in ("pca", "pca:0", "tree:3", "pca:x"):
        with pytest.raises(InputError, match="--adapter"):
            parse_adapter(text, channels=5, seed=0)
    with pytest.raises(InputError, match="more channels"):
        MultichannelProjector(6).fit(x)
