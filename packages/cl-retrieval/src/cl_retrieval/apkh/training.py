"""Training of APKH from pairs of features and a bank of attributes."""

from typing import Any, Literal

import torch
from contrastive_core.training import RunFolder
from jaxtyping import Float
from torch import Tensor, nn

from cl_retrieval.apkh.attributes import Bank, read_bank
from cl_retrieval.apkh.bank import first_centres
from cl_retrieval.apkh.inference import APKHEncoder
from cl_retrieval.apkh.model import APKH
from cl_retrieval.apkh.objective import variance_for_effective_number
from cl_retrieval.apkh.prompts import PromptOptions, mean_cosine
from cl_retrieval.apkh.system import APKHSystem, Settings, warn_of_width
from cl_retrieval.hashing.training import first_weights, fit_pairs
from cl_retrieval.pairs.features import PairFeatures


def train_apkh(
    pairs: PairFeatures,
    settings: Settings = Settings(),
    run: RunFolder | None = None,
    *,
    centres: nn.Module | None = None,
    bank: Bank | None = None,
    device: str = "cpu",
) -> APKHEncoder:
    """Learn hash functions over attributes; labels are not looked at.

    Args:
        pairs: Training pairs.
        settings: Everything the training is made of.
        run: Where logs and checkpoints go; nothing is written without.
        centres: Gives the kernel centres, and learns; by default what ``settings.prompts`` and the encoder of the pairs
            make of the attributes.
        bank: The attributes; those of ``settings.prompts`` by default.
        device: Where that encoder runs.

    Raises:
        InputError: The attributes cannot be read, or their encoder is not known.
    """
    bank = bank or read_bank(settings.prompts.attributes, settings.prompts.template)
    prompts = centres or first_centres(bank, pairs, settings.prompts, device=device)
    system = new_system(pairs, prompts, settings)
    fit_pairs(system, batch_size=settings.batch_size, settings=settings.training, run=run)
    with torch.no_grad():
        system.model.centres.copy_(prompts())  # the model needs no prompts from here on
    return APKHEncoder(system.model, pairs.origin, bank, _facts(system, bank, settings.prompts))


def new_system(pairs: PairFeatures, prompts: nn.Module, settings: Settings = Settings()) -> APKHSystem:
    """A fresh head over the kernels that prompts give."""
    fx, fy = torch.from_numpy(pairs.image), torch.from_numpy(pairs.text)
    with torch.no_grad():
        first = prompts()
    variance = kernel_variance(settings.prompts.variance, fx, first)
    with first_weights(settings.training.seed):
        model = APKH(first, settings.model, variance=variance)
    return APKHSystem(model, prompts, fx, fy, settings)


def kernel_variance(
    wanted: float | Literal["auto"], image: Float[Tensor, "n d"], centres: Float[Tensor, "m d"]
) -> float:
    """The width of the kernels; ``auto`` excites a quarter of the attributes."""
    return variance_for_effective_number(image, centres) if wanted == "auto" else wanted


def _facts(system: APKHSystem, bank: Bank, options: PromptOptions) -> dict[str, Any]:
    numbers = warn_of_width(system.model, system.fx, system.fy)
    return {
        "attributes": f"{len(bank.phrases)} ({bank.source})",
        "prompts": options.prompt_mode,
        "kernel variance": f"{float(system.model.variance):.4f}",
        **{f"effective attributes of a median {name}": f"{number:.1f}" for name, number in numbers.items()},
        "mean cosine of centres": f"{mean_cosine(system.model.centres):.3f}",
    }
