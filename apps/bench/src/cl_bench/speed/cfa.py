"""Speed of contrastive factor analysis."""

from collections.abc import Callable

import torch
from cl_foundations.cfa import FactorModel, ModelConfig, NormalPosterior, contrastive_likelihood, negative_elbo
from cl_foundations.cfa.model import Method
from torch import Tensor

from cl_bench.measures import Speed, race


def speed(rounds: int) -> list[Speed]:
    """Training steps against SimCLR's, and the exact spectral loss against its dense formula.

    Args:
        rounds: Timed rounds of each contestant.
    """
    steps = [
        _step_race(method, backbone, batch, rounds)
        for backbone, batch in (("tiny", 256), ("resnet18-cifar", 16))
        for method in ("cfa", "cnfa")
    ]
    return [*steps, _spectral_race(rounds)]


def _step_race(method: Method, backbone: str, batch: int, rounds: int) -> Speed:
    def stepper(kind: Method) -> Callable[[], None]:
        torch.manual_seed(0)
        model = FactorModel(ModelConfig(method=kind, backbone=backbone, hidden=2048, factors=256)).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        pair = torch.rand(2 * batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(negative_elbo(*model(pair).halves(), eta=0.1).loss)
            optimizer.step()

        return step

    return race(
        f"cfa: training step of {method}, {backbone}",
        stepper(method),
        stepper("simclr"),
        peer="simclr",
        rounds=rounds,
        notes=f"{batch} images of 32 pixels, 256 factors, infonce, forward, backward and AdamW",
    )


def _spectral_race(rounds: int, count: int = 8192, factors: int = 256) -> Speed:
    generator = torch.Generator().manual_seed(0)
    values = [0.05 * torch.randn(count, factors, generator=generator) for _ in range(4)]
    leaves = [value.requires_grad_() for value in values]
    first, second = NormalPosterior(leaves[0], leaves[1]), NormalPosterior(leaves[2], leaves[3])

    def ours() -> Tensor:
        return contrastive_likelihood(first, second, likelihood="spectral_exact")

    with torch.no_grad():
        gap = float((_dense_spectral(first, second) - ours()).abs() / ours().abs())

    def run(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def task() -> None:
            for leaf in leaves:
                leaf.grad = None
            torch.autograd.backward(loss())

        return task

    return race(
        f"cfa: exact spectral loss, {count:,} x {factors}",
        run(ours),
        run(lambda: _dense_spectral(first, second)),
        peer="dense formula",
        rounds=rounds,
        notes=f"forward and backward, float32; relative difference {gap:.1e}",
    )


def _dense_spectral(first: NormalPosterior, second: NormalPosterior) -> Tensor:
    m, v, m2, v2 = first.mean(), first.variance(), second.mean(), second.variance()
    pairs = (m @ m2.T).square() + m.square() @ v2.T + v @ m2.square().T + v @ v2.T
    n = len(m)
    return -2 * (m * m2).sum() / n + (pairs.sum() - pairs.diagonal().sum()) / (n * (n - 1))
