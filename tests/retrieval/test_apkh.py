"""APKH: kernels of attributes, alignment, overlap of pairs, prompts, statistics, and what is learnt."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cl_retrieval.apkh.attributes import ATTRIBUTES, Bank, label_overlap, read_bank
from cl_retrieval.apkh.bank import check_lengths, first_centres
from cl_retrieval.apkh.commands import new_learner
from cl_retrieval.apkh.explain import shared_attributes, top_attributes
from cl_retrieval.apkh.learner import APKHSettings
from cl_retrieval.apkh.model import APKH, APKHConfig
from cl_retrieval.apkh.objective import (
    anchor_loss,
    attribute_kernel,
    effective_number,
    gaussian_overlap,
    js_divergence,
    kernel_nce,
    log_rbf_sphere,
    variance_for_effective_number,
)
from cl_retrieval.apkh.prompts import ContextCentres, PromptOptions, ResidualCentres, context_centres, mean_cosine
from cl_retrieval.hashing.codes import binary_codes
from cl_retrieval.hashing.learning import optimise, step_generator
from cl_retrieval.hashing.objective import pair_gaussian, symmetric_contrast
from cl_retrieval.pairs.features import PairFeatures
from contrastive_core.errors import ContrastiveWarning, InputError

pytestmark = pytest.mark.filterwarnings("ignore:a median .* excites")


def unit(*shape, seed=0, dtype=torch.float64):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


# --- kernels ----------------------------------------------------------------------------------------------------------


def test_the_kernel_on_the_sphere_is_the_gaussian_one():
    f, t = unit(4, 8), unit(5, 8, seed=1)
    squared = (f[:, None] - t[None]).square().sum(2)
    found = log_rbf_sphere(f, t, 0.3).exp()
    torch.testing.assert_close(found, torch.exp(-squared / 0.6), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        log_rbf_sphere(t, t, 0.3).diagonal(), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(log_rbf_sphere(t, f, 0.3), log_rbf_sphere(f, t, 0.3).T)


def test_normalised_activations_are_shares():
    f, t = unit(4, 8), unit(5, 8, seed=1)
    phi = attribute_kernel(f, t, 0.1)
    kappa = attribute_kernel(f, t, 0.1, normalise=False)
    torch.testing.assert_close(phi, kappa / kappa.sum(1, keepdim=True))
    torch.testing.assert_close(phi.sum(1), torch.ones(4, dtype=torch.float64))
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(attribute_kernel(f, t[order], 0.1), phi[:, order])
    # A direction that all attributes share adds the same to every cosine, and nothing to the shares.
    common = F.normalize(f + 0.5, dim=1)
    torch.testing.assert_close((common @ t.T / 0.1).softmax(1), ((common @ t.T + 7) / 0.1).softmax(1))


def test_width_goes_from_one_hot_to_uniform():
    f, t = unit(4, 8), unit(5, 8, seed=1)
    torch.testing.assert_close(
        attribute_kernel(f, t, 1e6), torch.full((4, 5), 0.2, dtype=torch.float64), atol=1e-5, rtol=0
    )
    sharp = attribute_kernel(f, t, 1e-5)
    assert sharp.argmax(1).tolist() == (f @ t.T).argmax(1).tolist()
    assert sharp.amax(1).min() > 0.999
    assert effective_number(sharp).max() < 1.01
    assert effective_number(attribute_kernel(f, t, 1e6)).min() == pytest.approx(5, rel=1e-6)


def test_width_is_found_for_a_quarter_of_the_attributes():
    f, t = unit(50, 16), unit(40, 16, seed=1)
    width = variance_for_effective_number(f, t)
    assert float(effective_number(attribute_kernel(f, t, width)).median()) == pytest.approx(10, rel=0.01)


# --- alignment --------------------------------------------------------------------------------------------------------


def test_divergence_is_zero_only_for_equal_shares_symmetric_and_bounded():
    p, q = (
        torch.rand(6, 5, generator=torch.Generator().manual_seed(s), dtype=torch.float64).softmax(1) for s in (0, 1)
    )
    assert float(js_divergence(p, p)) == pytest.approx(0, abs=1e-12)
    assert js_divergence(p, q) > 0
    torch.testing.assert_close(js_divergence(p, q), js_divergence(q, p))
    middle = (p + q) / 2
    by_hand = ((p * (p / middle).log()).sum(1) + (q * (q / middle).log()).sum(1)).mean()
    torch.testing.assert_close(js_divergence(p, q), by_hand)
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert float(js_divergence(a, b)) == pytest.approx(2 * math.log(2))


def test_nce_of_activations_prefers_matching_views():
    p, q = (torch.rand(6, 5, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1))
    assert kernel_nce(p, p) < kernel_nce(p, q)
    torch.testing.assert_close(kernel_nce(p, q), kernel_nce(q, p))


def test_anchor_is_zero_where_prompts_have_not_moved():
    t = unit(5, 8)
    assert float(anchor_loss(t, t)) == pytest.approx(0, abs=1e-12)
    assert float(anchor_loss(-t, t)) == pytest.approx(2)


# --- overlap of pairs -------------------------------------------------------------------------------------------------


def test_overlap_of_points_is_the_plain_kernel():
    mu = unit(4, 8)
    none = torch.zeros(4, dtype=torch.float64)
    found = gaussian_overlap(mu, none, 0.4)
    torch.testing.assert_close(found, torch.exp(-torch.cdist(mu, mu).square() / 0.8))
    torch.testing.assert_close(found.diagonal(), torch.ones(4, dtype=torch.float64))


def test_overlap_of_gaussians_agrees_with_draws():
    mu, sigma, s2 = unit(2, 4), torch.tensor([0.5, 0.8], dtype=torch.float64), 0.3
    found = gaussian_overlap(mu, sigma, s2)
    generator = torch.Generator().manual_seed(0)
    a, b = (mu[i] + sigma[i] / 2 * torch.randn(400_000, 4, generator=generator, dtype=torch.float64) for i in (0, 1))
    drawn = torch.exp(-(a - b).square().sum(1) / (2 * s2)).mean()
    assert float(found[0, 1]) == pytest.approx(float(drawn), rel=0.02)
    torch.testing.assert_close(found, found.T)


# --- model ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(24, 12))
    views = [points + 0.3 * rng.normal(size=points.shape) + 2 * np.eye(12)[side] for side in (0, 1)]
    return tuple(torch.from_numpy(v / np.linalg.norm(v, axis=1, keepdims=True)).float() for v in views)


CENTRES = unit(20, 12, seed=5, dtype=torch.float32)
CONFIG = APKHConfig(bits=16, hidden=32)


def learner_of(pairs, mode="residual", config=CONFIG, **settings):
    return new_learner(
        *pairs, ResidualCentres(CENTRES, learn=mode == "residual"), config, APKHSettings(**settings), seed=0
    )


def test_residual_prompts_start_as_frozen_ones_and_frozen_ones_stay(pairs):
    residual, frozen = learner_of(pairs), learner_of(pairs, mode="frozen")
    torch.testing.assert_close(residual.prompts(), frozen.prompts())
    codes = [binary_codes(each.model, pairs[0].numpy(), "image") for each in (residual, frozen)]
    assert np.array_equal(*codes)
    for each in (residual, frozen):
        optimise(each, *pairs, epochs=3, seed=0)
    assert torch.equal(frozen.model.centres, CENTRES)
    assert not torch.equal(residual.model.centres, CENTRES)
    torch.testing.assert_close(residual.model.centres.norm(dim=1), torch.ones(20))


def test_alignment_reaches_the_prompts_alone(pairs):
    learner = learner_of(pairs)
    js_divergence(*(learner.model.kernel(f, learner.prompts()) for f in pairs)).backward()
    assert learner.prompts.delta.grad.abs().sum() > 0
    assert all(p.grad is None for p in learner.model.parameters())


def test_a_shared_head_treats_modalities_alike_once_statistics_agree(pairs):
    learner = new_learner(pairs[0], pairs[0], ResidualCentres(CENTRES), CONFIG, seed=0)
    model = learner.model
    assert torch.equal(model.relaxed(pairs[1], "image"), model.relaxed(pairs[1], "text"))
    separate = learner_of(pairs, config=APKHConfig(bits=16, hidden=32, shared=False)).model
    assert len(separate.heads) == 2


def test_standardising_removes_a_shift_of_one_modality_exactly(pairs):
    """A shift of all activations of the texts changes nothing: it goes into their mean."""
    config = APKHConfig(bits=16, hidden=32, inputs="raw")
    shift = torch.linspace(-1, 1, 12)
    plain, shifted = APKH(CENTRES, config), APKH(CENTRES, config)
    shifted.load_state_dict(plain.state_dict())
    plain.fit_statistics(*pairs)
    shifted.fit_statistics(pairs[0], pairs[1] + shift)
    torch.testing.assert_close(
        shifted.relaxed(pairs[1] + shift, "text"), plain.relaxed(pairs[1], "text"), atol=1e-5, rtol=1e-4
    )
    values = (plain.inputs(pairs[0], plain.kernel(pairs[0])) - plain.mean[0]) / plain.scale[0]
    torch.testing.assert_close(values.mean(0), torch.zeros(12), atol=1e-5, rtol=0)
    assert float(values.std(0, correction=0).mean()) == pytest.approx(1, rel=1e-5)


def test_identical_views_make_smoothing_the_plain_contrast_of_their_middle(pairs):
    f = pairs[0]
    learner = new_learner(f, f, ResidualCentres(CENTRES), CONFIG, seed=0)
    found = learner.step(f, f, epoch=0, generator=step_generator(0, 0))
    mu, sigma = pair_gaussian(f, f)
    assert float(sigma.max()) == 0
    h = [learner.model.relaxed(mu, m) for m in ("image", "text")]
    torch.testing.assert_close(
        found.terms["contrast"], symmetric_contrast(*h, h[1], h[0], temperature=0.5), rtol=1e-5, atol=1e-6
    )


def test_every_switch_changes_the_loss(pairs):
    def loss(config=CONFIG, mode="residual", **settings):
        learner = learner_of(pairs, mode=mode, config=config, **settings)
        if learner.prompts.delta is not None:
            learner.prompts.delta.data += 0.05  # away from the start, where the anchor is zero
        return float(learner.step(*pairs, epoch=0, generator=step_generator(0, 0)).loss)

    base = loss()
    switches = [
        {"smooth": False},
        {"discount": True},
        {"align": "nce"},
        {"align": "none"},
        {"samples": 4},
        {"reference": "pm1"},
        {"noise": "per_coordinate"},
        {"mode": "frozen"},
        {"anchor_weight": 5.0},
        {"temperature": 0.2},
        *(
            {"config": APKHConfig(bits=16, hidden=32, **change)}
            for change in (
                {"inputs": "raw"},
                {"inputs": "both"},
                {"normalise_kernel": False},
                {"standardise": False},
                {"shared": False},
            )
        ),
        {"config": APKHConfig(bits=16, hidden=0)},
    ]
    values = [loss(**switch) for switch in switches]
    assert all(math.isfinite(v) and abs(v - base) > 1e-6 for v in values), list(zip(switches, values, strict=True))


def test_width_learns_within_its_bounds(pairs):
    learner = learner_of(pairs, learn_variance=True, lr_prompt=0.5)
    optimise(learner, *pairs, epochs=6, seed=0)
    assert 0.004 < float(learner.model.variance) < 1.7
    assert float(learner.model.variance) != pytest.approx(0.05)
    still = learner_of(pairs)
    optimise(still, *pairs, epochs=2, seed=0)
    assert float(still.model.variance) == pytest.approx(0.05)


def test_statistics_can_follow_the_prompts(pairs):
    learner = learner_of(pairs, refresh_statistics=True, lr_prompt=0.05)
    before = learner.model.mean.clone()
    optimise(learner, *pairs, epochs=4, seed=0)
    assert not torch.equal(learner.model.mean, before)
    fixed = learner_of(pairs, lr_prompt=0.05)
    start = fixed.model.mean.clone()
    optimise(fixed, *pairs, epochs=4, seed=0)
    assert torch.equal(fixed.model.mean, start)


@pytest.mark.filterwarnings("default")
def test_useless_widths_are_told(pairs):
    with pytest.warns(ContrastiveWarning, match="too wide"):
        new_learner(*pairs, ResidualCentres(CENTRES), CONFIG, variance=1.0, seed=0)


def test_training_repeats_and_learns(pairs):
    def trained(epochs):
        learner = learner_of(pairs, lr=1e-3)
        optimise(learner, *pairs, epochs=epochs, seed=0)
        hx, hy = (learner.model.relaxed(f, m) for f, m in zip(pairs, ("image", "text"), strict=True))
        cosines = (hx @ hy.T).detach()
        return float(cosines.diagonal().mean() - cosines[~torch.eye(24, dtype=bool)].mean()), hx

    gap, first = trained(100)
    again, second = trained(100)
    assert torch.equal(first, second)
    assert gap == again
    assert gap > trained(1)[0] + 0.2


# --- banks ------------------------------------------------------------------------------------------------------------


def test_the_own_bank_has_172_different_words():
    assert len(ATTRIBUTES) == len(set(ATTRIBUTES)) == 172
    assert read_bank(None).prompts()[0] == "a photo of something red"


def test_banks_are_read_from_text_and_vaw(tmp_path):
    text = tmp_path / "bank.txt"
    text.write_text("# colours\nred\n light  blue \n\n")
    assert read_bank(text).phrases == ("red", "light blue")
    vaw = tmp_path / "attribute_index.json"
    vaw.write_text('{"amber": 1, "afraid": 0}')
    assert read_bank(vaw).phrases == ("afraid", "amber")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"red\nRed\n", "line 2"),
        (b"red\n\nblue\n", "line 2"),
        (b"red\n\xff\xfe\n", "line 2"),
        (b"red\n", "two attributes"),
    ],
)
def test_bad_banks_are_refused_with_their_line(tmp_path, content, message):
    path = tmp_path / "bank.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_bank(path)


def test_bad_templates_and_tables_are_refused(tmp_path):
    with pytest.raises(InputError, match="template"):
        read_bank(None, "a photo")
    broken = tmp_path / "bank.json"
    broken.write_text("[1]")
    with pytest.raises(InputError, match="cannot be read"):
        read_bank(broken)
    with pytest.raises(InputError, match="cannot be read"):
        read_bank(tmp_path / "none.txt")


def test_attributes_that_name_classes_are_found():
    bank = Bank(("heart", "red", "fish", "sky"))
    assert label_overlap(bank, ["Heart", "sky & weather", "animal-fishes"]) == ("heart", "sky")


def test_explanations_name_the_strongest_and_the_shared():
    phi, other = np.array([0.6, 0.3, 0.1]), np.array([0.1, 0.5, 0.4])
    assert top_attributes(phi, ["a", "b", "c"], 2) == [("a", 0.6), ("b", 0.3)]
    assert [name for name, _ in shared_attributes(phi, other, ["a", "b", "c"], 1)] == ["b"]


# --- prompts through an open_clip text tower --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tiny_clip):
    from cl_retrieval.encoders import load_encoder

    return load_encoder(f"local-dir:{tiny_clip}")


def test_context_starts_as_encode_text(clip):
    prompts = read_bank(None).prompts()[:7]
    centres = context_centres(clip, prompts, context=4)
    with torch.no_grad():
        expected = F.normalize(clip.model.encode_text(clip.tokenizer(prompts)), dim=1)
        torch.testing.assert_close(centres(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(centres(), expected, rtol=1e-4, atol=1e-5)  # recomputed in chunks, with gradient
    assert centres.tokens.shape[1] < clip.tokenizer(prompts).shape[1]  # cropped to the longest prompt


def test_context_learns_and_the_tower_does_not(clip):
    prompts = read_bank(None).prompts()[:12]
    centres = context_centres(clip, prompts, context=4)
    assert isinstance(centres, ContextCentres)
    fx, fy = (unit(8, clip.dim, seed=s, dtype=torch.float32) for s in (0, 1))
    before = [p.clone() for p in clip.model.parameters()]
    learner = new_learner(fx, fy, centres, CONFIG, APKHSettings(lr_prompt=1e-2), seed=0)
    start, first = centres.context.detach().clone(), learner.model.centres.clone()
    optimise(learner, fx, fy, epochs=2, seed=0)
    assert not torch.equal(centres.context, start)
    assert not torch.equal(learner.model.centres, first)
    assert all(p.grad is None for p in clip.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, clip.model.parameters(), strict=True))
    assert not any("token_embedding" in name for name in learner.state_dict())


def test_context_that_does_not_fit_is_refused(clip):
    with pytest.raises(InputError, match="shorter than the context"):
        context_centres(clip, ["red"], context=4)
    with pytest.raises(InputError, match="text tower"):
        context_centres(object(), ["a photo of red"], context=4)


def test_phrases_too_long_for_the_tower_are_refused(clip):
    lengths = check_lengths(Bank(("red", "very dark red")), clip)
    assert lengths[1] == lengths[0] + 2
    with pytest.raises(InputError, match="too long"):
        check_lengths(Bank(("red", "blue " * 80)), clip)


def test_attributes_need_an_encoder_or_their_own_features(tmp_path):
    rows = unit(6, 8, dtype=torch.float32).numpy()
    features = PairFeatures(tuple("abcdef"), rows, rows, fingerprint="precomputed-8")
    bank = Bank(("red", "blue"))
    with pytest.raises(InputError, match="encoder of the features is not known"):
        first_centres(bank, features, PromptOptions(), device="cpu")
    path = tmp_path / "attributes.npy"
    np.save(path, np.eye(8, dtype=np.float32)[:2] * 3)
    centres = first_centres(bank, features, PromptOptions(attribute_features=path), device="cpu")
    torch.testing.assert_close(centres().detach(), torch.eye(8)[:2])
    assert mean_cosine(centres().detach()) == 0
    np.save(path, np.eye(8, dtype=np.float32)[:3])
    with pytest.raises(InputError, match="do not fit the attributes"):
        first_centres(bank, features, PromptOptions(attribute_features=path), device="cpu")
    with pytest.raises(InputError, match="width of the kernels"):
        PromptOptions(variance=2.0)
