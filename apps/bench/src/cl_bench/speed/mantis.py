"""Speed of Mantis."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from cl_signals.mantis.model import Mantis

from cl_bench.measures import Speed, race


def speed(rounds: int) -> list[Speed]:
    """Embedding against ``mantis-tsfm`` with the same weights, and CauKer's roots against scikit-learn.

    Args:
        rounds: Timed rounds of each contestant.
    """
    return [*_embedding(rounds), _drawing(rounds)]


def _embedding(rounds: int) -> list[Speed]:
    from cl_signals.mantis.weights import import_state
    from mantis.architecture import MantisV1, MantisV2

    entries = []
    x = torch.randn(256, 1, 512, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    for version, peer in (("V1", MantisV1), ("V2", MantisV2)):
        torch.manual_seed(0)
        theirs = peer(device="cpu").eval()
        with_projector = peer(device="cpu", pre_training=True).state_dict()
        ours, _ = import_state({**with_projector, **theirs.state_dict()})
        with torch.inference_mode():
            reference = ours(x)
            gap = float((reference - theirs(x)).abs().max())
            with torch.autocast("cpu", dtype=torch.bfloat16):
                half = ours(x).float()
        similarity = torch.nn.functional.cosine_similarity(half, reference).min()

        def run(model: Callable[[torch.Tensor], object]) -> Callable[[], None]:
            def task() -> None:
                with torch.inference_mode():
                    model(x)

            return task

        def run_half(model: Mantis = ours) -> None:
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                model(x)

        size = "256 series of 512 points, CPU"
        entries.append(
            race(
                f"mantis: embedding {version}",
                run(ours),
                run(theirs),
                peer="mantis-tsfm",
                rounds=rounds,
                notes=f"{size}; outputs differ by at most {gap:.1e}",
            )
        )
        entries.append(
            race(
                f"mantis: embedding {version}, bf16",
                run_half,
                run(theirs),
                peer="mantis-tsfm in float32",
                rounds=rounds,
                notes=f"{size}; smallest cosine to float32 {float(similarity):.5f}",
            )
        )
    return entries


def _drawing(rounds: int) -> Speed:
    """The same random kernel compositions, drawn one by one on one thread."""
    from functools import reduce

    from cl_signals.mantis.synthetic.banks import kernel_bank
    from cl_signals.mantis.synthetic.generator import compose, sample
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process import kernels as sk
    from threadpoolctl import threadpool_limits

    makers: dict[str, Callable[[float], Any]] = {
        "periodic": lambda value: sk.ExpSineSquared(1.0, value / 512),
        "dot": lambda value: sk.DotProduct(value),
        "rbf": lambda value: sk.RBF(value),
        "rational": lambda value: sk.RationalQuadratic(1.0, value),
        "white": lambda value: sk.WhiteKernel(value),
        "matern": lambda value: sk.Matern(1 / 512 if value == 0.5 else 5 / 512, nu=value),
    }
    rng, bank = np.random.default_rng(0), kernel_bank("v2")
    picks = [[bank[i] for i in rng.integers(0, len(bank), rng.integers(1, 8))] for _ in range(20)]
    products = [(rng.random(len(pick) - 1) < 0.5).tolist() for pick in picks]
    x = np.linspace(0, 1, 512)[:, None]

    def ours() -> None:
        generator = np.random.default_rng(1)
        with threadpool_limits(1):
            for pick, product in zip(picks, products, strict=True):
                sample(compose(pick, product, 512), generator)

    def theirs() -> None:
        with threadpool_limits(1):
            for seed, (pick, product) in enumerate(zip(picks, products, strict=True)):
                parts = [makers[kernel.name.partition("-")[0]](float(kernel.name.partition("-")[2])) for kernel in pick]
                kernel = reduce(
                    lambda left, right: left * right[0] if right[1] else left + right[0],
                    zip(parts[1:], product, strict=True),
                    parts[0],
                )
                GaussianProcessRegressor(kernel).sample_y(x, random_state=seed)

    notes = "20 series of 512 points from the same kernel compositions, one thread"
    return race(
        "mantis: drawing Gaussian processes", ours, theirs, peer="scikit-learn sample_y", rounds=rounds, notes=notes
    )
