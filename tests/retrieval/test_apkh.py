"""APKH: kernels of attributes, alignment, overlap of pairs, prompts, statistics, and what is learnt."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cl_retrieval.apkh.attributes import ATTRIBUTES, Bank, label_overlap, read_bank
from cl_retrieval.apkh.bank import check_lengths, first_centres
from cl_retrieval.apkh.explain import shared_attributes, top_attributes
from cl_retrieval.apkh.inference import APKHEncoder
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
from cl_retrieval.apkh.system import ObjectiveSettings, OptimSettings, Settings
from cl_retrieval.apkh.training import new_system, train_apkh
from cl_retrieval.hashing.heads import sign_codes
from cl_retrieval.hashing.objective import pair_gaussian, symmetric_contrast
from cl_retrieval.hashing.system import weighted_sum
from cl_retrieval.hashing.training import fit_pairs
from cl_retrieval.pairs.features import PairFeatures
from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.training import TrainSettings

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


def test_divergence_is_finite_at_exact_zeros_with_its_gradient():
    """Narrow kernels underflow to zero in single precision; the prompts' gradient stays that of double precision."""
    f, g = unit(8, 24, dtype=torch.float32), unit(8, 24, seed=1, dtype=torch.float32)
    t = torch.cat([f[:4], unit(40, 24, seed=2, dtype=torch.float32)])

    def gradient(dtype):
        centres = t.to(dtype, copy=True).requires_grad_()
        phi = [attribute_kernel(each.to(dtype), centres, 0.005) for each in (f, g)]
        loss = js_divergence(*phi)
        loss.backward()
        return loss.detach(), centres.grad, min(int((each == 0).sum()) for each in phi)

    loss, grad, zeros = gradient(torch.float32)
    exact, wanted, none = gradient(torch.float64)
    assert zeros > 0 == none
    assert torch.isfinite(grad).all()
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grad.double(), wanted, rtol=1e-3, atol=1e-4)


def test_nce_is_the_softmax_of_centred_cosines_both_ways():
    p, q = (torch.rand(6, 5, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1))
    a, b = (F.normalize(each - each.mean(0), dim=1) for each in (p, q))
    logits, own = a @ b.T / 0.1, torch.arange(6)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(kernel_nce(p, q), expected)


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
    return PairFeatures.from_arrays(*(points + 0.3 * rng.normal(size=points.shape) + 2 * np.eye(12)[s] for s in (0, 1)))


CENTRES = unit(20, 12, seed=5, dtype=torch.float32)
CONFIG = APKHConfig(bits=16, hidden=32)


def settings_of(epochs=3, config=CONFIG, lr=1e-4, lr_prompt=1e-4, variance=0.05, **objective):
    training = TrainSettings(epochs=epochs, progress=False, accelerator="cpu")
    prompts, optim = PromptOptions(variance=variance), OptimSettings(lr, lr_prompt)
    return Settings(prompts, config, ObjectiveSettings(**objective), optim, training=training)


def system_of(pairs, mode="residual", **settings):
    return new_system(pairs, ResidualCentres(CENTRES, learn=mode == "residual"), settings_of(**settings))


def fitted(system):
    fit_pairs(system, batch_size=100, settings=system.settings.training)
    return system


def terms_of(system, fx=None, fy=None):
    fx, fy = (system.fx, system.fy) if fx is None else (fx, fy)
    return system.terms(fx, fy, epoch=0, generator=torch.Generator().manual_seed(0))


def sides(pairs):
    return torch.from_numpy(pairs.image), torch.from_numpy(pairs.text)


def test_residual_prompts_start_as_frozen_ones_and_frozen_ones_stay(pairs):
    residual, frozen = (system_of(pairs, mode=mode) for mode in ("residual", "frozen"))
    torch.testing.assert_close(residual.prompts(), frozen.prompts())
    signs = [sign_codes(each.model.relaxed(each.fx, "image")) for each in (residual, frozen)]
    assert torch.equal(*signs)
    moved, still = (
        train_apkh(pairs, settings_of(), centres=ResidualCentres(CENTRES, learn=learn)).model.centres
        for learn in (True, False)
    )
    assert torch.equal(still, CENTRES)
    assert not torch.equal(moved, CENTRES)
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(20))


def test_alignment_reaches_the_prompts_alone(pairs):
    system = system_of(pairs)
    js_divergence(*(system.model.kernel(f, system.prompts()) for f in sides(pairs))).backward()
    assert system.prompts.delta.grad.abs().sum() > 0
    assert all(p.grad is None for p in system.model.parameters())


def test_kernels_that_do_not_sum_to_one_are_aligned_too(pairs):
    config = APKHConfig(bits=16, hidden=32, normalise_kernel=False)
    plain, js, nce = (
        terms_of(system_of(pairs, config=each, align=align))["alignment"].value
        for each, align in ((CONFIG, "js"), (config, "js"), (config, "nce"))
    )
    torch.testing.assert_close(js, plain)  # of the shares, whatever is hashed
    assert float(nce.detach()) > 0


def test_a_shared_head_treats_modalities_alike_once_statistics_agree(pairs):
    model = system_of(PairFeatures.from_arrays(pairs.image, pairs.image)).model
    text = torch.from_numpy(pairs.text)
    assert torch.equal(model.relaxed(text, "image"), model.relaxed(text, "text"))
    separate = system_of(pairs, config=APKHConfig(bits=16, hidden=32, shared=False)).model
    assert len(separate.heads) == 2


def test_standardising_removes_a_shift_of_one_modality_exactly(pairs):
    """A shift of all activations of the texts changes nothing: it goes into their mean."""
    config = APKHConfig(bits=16, hidden=32, inputs="raw")
    shift, pairs = torch.linspace(-1, 1, 12), sides(pairs)
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
    f = torch.from_numpy(pairs.image)
    system = system_of(PairFeatures.from_arrays(pairs.image, pairs.image))
    mu, sigma = pair_gaussian(f, f)
    assert float(sigma.max()) == 0
    h = [system.model.relaxed(mu, m) for m in ("image", "text")]
    torch.testing.assert_close(
        terms_of(system, f, f)["contrast"].value,
        symmetric_contrast(*h, h[1], h[0], temperature=0.5),
        rtol=1e-5,
        atol=1e-6,
    )


def test_every_switch_changes_the_loss(pairs):
    def loss(**settings):
        system = system_of(pairs, **settings)
        if system.prompts.delta is not None:
            system.prompts.delta.data += 0.05  # away from the start, where the anchor is zero
        return float(weighted_sum(terms_of(system)).detach())

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
    learnt = fitted(system_of(pairs, learn_variance=True, lr_prompt=0.5, epochs=6)).model.variance
    assert 0.004 < float(learnt.detach()) < 1.7
    assert float(learnt.detach()) != pytest.approx(0.05)
    assert float(fitted(system_of(pairs, epochs=2)).model.variance.detach()) == pytest.approx(0.05)


@pytest.mark.parametrize("follow", [True, False])
def test_statistics_can_follow_the_prompts(pairs, follow):
    system = system_of(pairs, refresh_statistics=follow, lr_prompt=0.05, epochs=4)
    before = system.model.mean.clone()
    assert torch.equal(fitted(system).model.mean, before) != follow


@pytest.mark.filterwarnings("default")
def test_useless_widths_are_told(pairs):
    with pytest.warns(ContrastiveWarning, match="too wide"):
        system_of(pairs, variance=1.0)


def test_the_narrowest_kernels_train(pairs):
    """Their activations underflow to zero, which once made the gradient of the alignment NaN."""
    rng = np.random.default_rng(1)
    wide = PairFeatures.from_arrays(*rng.normal(size=(2, 20, 64)))
    centres = torch.cat([torch.from_numpy(wide.image[:6]), unit(40, 64, seed=3, dtype=torch.float32)])
    encoder = train_apkh(wide, settings_of(variance=0.005), centres=ResidualCentres(centres), bank=BANK46)
    assert (encoder.activations(wide.image) == 0).any()
    assert torch.isfinite(encoder.model.centres).all()


BANK46 = Bank(tuple(f"word {i}" for i in range(46)))


def test_an_encoder_learns_repeats_saves_and_loads(pairs, tmp_path):
    def gap(encoder):
        hx, hy = (encoder.model.relaxed(f, m) for f, m in zip(sides(pairs), ("image", "text"), strict=True))
        cosines = (hx @ hy.T).detach()
        return float(cosines.diagonal().mean() - cosines[~torch.eye(24, dtype=bool)].mean())

    def trained(epochs):
        bank = Bank(tuple(f"word {i}" for i in range(20)))
        return train_apkh(pairs, settings_of(epochs, lr=1e-2), centres=ResidualCentres(CENTRES), bank=bank)

    first, again = trained(25), trained(25)
    assert gap(first) > gap(trained(1)) + 0.2
    codes = first.encode(pairs.text, "text")
    assert np.array_equal(codes, again.encode(pairs.text, "text"))
    first.save(tmp_path)
    loaded = APKHEncoder.load(tmp_path)  # needs no text tower
    assert np.array_equal(codes, loaded.encode(pairs.text, "text"))
    assert loaded.bank.phrases == first.bank.phrases
    np.testing.assert_allclose(loaded.activations(pairs.image).sum(1), 1, rtol=1e-5)


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
    for content in ('{"red": 0, "blue": 0}', '{"red": 0, "blue": 1.5}', '{"red": 0, "blue": true}'):
        broken.write_text(content)
        with pytest.raises(InputError, match="cannot be read"):
            read_bank(broken)
    with pytest.raises(InputError, match="missing"):
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
    pairs = PairFeatures.from_arrays(*(unit(8, clip.dim, seed=s, dtype=torch.float32).numpy() for s in (0, 1)))
    before = [p.clone() for p in clip.model.parameters()]
    start, first = centres.context.detach().clone(), centres().detach()
    settings = settings_of(epochs=2, lr_prompt=1e-2)
    encoder = train_apkh(pairs, settings, centres=centres, bank=Bank(ATTRIBUTES[:12]))
    assert not torch.equal(centres.context, start)
    assert not torch.equal(encoder.model.centres, first)
    assert all(p.grad is None for p in clip.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, clip.model.parameters(), strict=True))
    assert not any("token_embedding" in name for name in new_system(pairs, centres, settings).state_dict())


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
