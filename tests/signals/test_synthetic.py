"""CauKer: kernels against scikit-learn, distribution, determinism, corpora on disk."""

import hashlib

import numpy as np
import pytest
from cl_signals.mantis.synthetic import CauKerSettings, generate, preset, read_corpus, write_corpus
from cl_signals.mantis.synthetic.banks import kernel_bank
from cl_signals.mantis.synthetic.generator import compose, random_graph, sample
from contrastive_core.errors import InputError
from sklearn.gaussian_process import kernels as sk


def oracle(name, length):
    kind, _, value = name.partition("-")
    number = float(value or 1)
    return {
        "periodic": lambda: sk.ExpSineSquared(1.0, number / length),
        "dot": lambda: sk.DotProduct(number),
        "rbf": lambda: sk.RBF(number),
        "rational": lambda: sk.RationalQuadratic(1.0, number),
        "white": lambda: sk.WhiteKernel(number),
        "constant": lambda: sk.ConstantKernel(1.0),
        "matern": lambda: sk.Matern(1 / length if number == 0.5 else 5 / length, nu=number),
    }[kind]()


@pytest.mark.parametrize(("version", "size"), [("v1", 33), ("v2", 34)])
def test_banks_equal_scikit_learn(version, size):
    bank = kernel_bank(version)
    assert len(bank) == size
    x = (np.arange(64) / 63)[:, None]
    for kernel in bank:
        np.testing.assert_allclose(kernel.matrix(64), oracle(kernel.name, 64)(x), atol=1e-9, err_msg=kernel.name)


def test_composition_equals_scikit_learn_and_large_scales_are_brought_down():
    bank = {kernel.name: kernel for kernel in kernel_bank("v2")}
    names, products = ["rbf-0.1", "periodic-7", "dot-1", "white-0.1"], [True, False, True]
    x = (np.arange(50) / 49)[:, None]
    reference = (oracle("rbf-0.1", 50)(x) * oracle("periodic-7", 50)(x) + oracle("dot-1", 50)(x)) * oracle(
        "white-0.1", 50
    )(x)
    np.testing.assert_allclose(compose([bank[name] for name in names], products, 50), reference, atol=1e-9)
    large = compose([bank["dot-10"]] * 4, [True] * 3, 50)
    assert np.mean(np.diag(large)) == pytest.approx(1)


def test_draws_have_the_covariance_asked_for():
    bank = {kernel.name: kernel for kernel in kernel_bank("v2")}
    covariance = compose([bank["rbf-0.1"], bank["dot-1"]], [True], 24)
    rng = np.random.default_rng(0)
    draws = np.stack([sample(covariance, rng) for _ in range(20000)])
    np.testing.assert_allclose(draws.T @ draws / len(draws), covariance, atol=0.08)


def test_a_matrix_that_is_not_quite_positive_still_gives_a_draw():
    values = np.array([1.0, 0.5, -0.2])
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    assert np.isfinite(sample(basis * values @ basis.T, np.random.default_rng(1))).all()


def test_white_bank_is_white_and_period_24_peaks_where_it_should():
    white = generate(8, settings=CauKerSettings(only=("white-1",), mean="zero", graph=False, kernels=1))
    for series in white:
        z = series - series.mean()
        assert abs((z[1:] * z[:-1]).sum() / (z * z).sum()) < 3 / np.sqrt(512)
    periodic = generate(8, settings=CauKerSettings(only=("periodic-24",), mean="zero", graph=False, kernels=1))
    spectrum = np.abs(np.fft.rfft(periodic - periodic.mean(1, keepdims=True))).mean(0)
    assert abs(int(spectrum.argmax()) - 512 / 24) <= 1.5


def test_graphs_have_no_cycle_and_few_parents():
    rng = np.random.default_rng(0)
    for _ in range(50):
        parents = random_graph(CauKerSettings(), rng)
        assert len(parents[0]) == 0
        for node, each in enumerate(parents):
            assert len(each) <= 6
            assert len(set(each.tolist())) == len(each)
            assert all(parent < node for parent in each)


def test_bytes_do_not_depend_on_the_number_of_workers():
    settings = CauKerSettings(length=64)
    one, two = (generate(40, settings=settings, seed=7, workers=workers) for workers in (1, 2))
    assert one.tobytes() == two.tobytes()
    assert one.dtype == np.float32
    assert np.isfinite(one).all()
    assert (np.ptp(one, axis=1) > 0).all()
    assert generate(40, settings=settings, seed=8).tobytes() != one.tobytes()


@pytest.mark.parametrize("name", ["cauker-100k", "cauker-2m", "kernelsynth", "mean-kernelsynth", "scm-only"])
def test_presets_draw(name):
    assert generate(5, settings=preset(name).settings).shape == (5, 512)


@pytest.mark.parametrize("suffix", [".arrow", ".npz", ".npy"])
def test_corpus_round_trip(tmp_path, suffix):
    settings = CauKerSettings(length=32, only=("rbf-1", "periodic-7"))
    manifest = write_corpus(tmp_path / f"c{suffix}", 1100, settings=settings, seed=3)
    values = read_corpus(tmp_path / f"c{suffix}")
    assert values.tobytes() == generate(1100, settings=settings, seed=3).tobytes()
    assert manifest["sha256_of_values"] == hashlib.sha256(values.tobytes()).hexdigest()
    assert (tmp_path / "c.manifest.json").is_file()
    with pytest.raises(InputError, match="--overwrite"):
        write_corpus(tmp_path / f"c{suffix}", 2, settings=settings)
    path = tmp_path / f"c{suffix}"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match="cannot be read"):
        read_corpus(path)


@pytest.mark.parametrize("options", [{"length": 1}, {"observed": 19}, {"only": ("nothing",)}, {"kernels": 0}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(InputError):
        CauKerSettings(**options)


def test_other_refusals(tmp_path):
    with pytest.raises(InputError, match="preset"):
        preset("nothing")
    with pytest.raises(InputError, match="format"):
        write_corpus(tmp_path / "c.txt", 2, settings=CauKerSettings())
    with pytest.raises(InputError, match="missing"):
        read_corpus(tmp_path / "c.arrow")
