"""Speed of Mantis."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cl_signals.mantis.model import Token
from cl_signals.mantis.synthetic.banks import kernel_bank
from cl_signals.mantis.synthetic.generator import compose, sample
from cl_signals.mantis.weights import import_state
from mantis.architecture import MantisV1, MantisV2
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process import kernels as sk
from threadpoolctl import threadpool_limits
from torch import Tensor

from cl_bench.measures import Speed, race

TOKENS: dict[Token, str] = {"cls": "cls_token", "combined": "combined"}
"""Our names of tokens, and the peer's."""


def speed(rounds: int) -> list[Speed]:
    """Embedding against ``mantis-tsfm`` with the same weights, and CauKer's roots against scikit-learn.

    Args:
        rounds: Timed rounds of each contestant.
    """
    return [*_embedding(rounds), _drawing(rounds)]


def _embedding(rounds: int) -> list[Speed]:
    """Both versions and both tokens people use, in float32 and bf16."""
    x = torch.randn(256, 1, 512, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    return [
        entry
        for version, make in (("V1", MantisV1), ("V2", MantisV2))
        for token in TOKENS
        for entry in _token(version, make, token, x, rounds)
    ]


def _token(version: str, make: Callable[..., Any], token: Token, x: Tensor, rounds: int) -> list[Speed]:
    torch.manual_seed(0)
    peer = make(device="cpu", output_token=TOKENS[token]).eval()
    # Its file for pre-training has the projector besides, which ours always has.
    ours, _ = import_state({**make(device="cpu", pre_training=True).state_dict(), **peer.state_dict()})

    @torch.inference_mode()
    def exact() -> Tensor:
        return ours(x, token=token)

    @torch.inference_mode()
    def half() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return ours(x, token=token).float()

    @torch.inference_mode()
    def theirs() -> Tensor:
        return peer(x)

    reference = exact()
    gap = float((reference - theirs()).abs().max())
    similarity = float(F.cosine_similarity(half(), reference).min())
    name, size = f"mantis: embedding {version}, token {token}", f"256 series of 512 points, token {token}, CPU"
    agreement = f"{size}; outputs differ by at most {gap:.1e}"
    cosine = f"{size}; smallest cosine to float32 {similarity:.5f}"
    return [
        race(name, exact, theirs, peer="mantis-tsfm", rounds=rounds, notes=agreement),
        race(f"{name}, bf16", half, theirs, peer="mantis-tsfm in float32", rounds=rounds, notes=cosine),
    ]


def _drawing(rounds: int) -> Speed:
    """The same random kernel compositions, drawn one by one on one thread."""
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

    notes = "20 series of 512 points from the same kernel compositions"
    return race(
        "mantis: drawing Gaussian processes",
        ours,
        theirs,
        peer="scikit-learn sample_y",
        rounds=rounds,
        notes=notes,
        threads=1,
    )
