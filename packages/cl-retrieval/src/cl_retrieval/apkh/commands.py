"""The verbs of ``cl-retrieval apkh``; the same functions are the Python interface."""

import copy
import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from contrastive_core.training import RunFolder
from cyclopts import Parameter
from jaxtyping import Float
from torch import Tensor, nn

from cl_retrieval import tasks
from cl_retrieval.apkh.attributes import TEMPLATE, read_bank
from cl_retrieval.apkh.bank import check_bank, first_centres, report_overlap
from cl_retrieval.apkh.explain import explain_items
from cl_retrieval.apkh.learner import APKHLearner, APKHSettings, warn_of_width
from cl_retrieval.apkh.model import APKH, KIND, APKHConfig, save_model
from cl_retrieval.apkh.objective import variance_for_effective_number
from cl_retrieval.apkh.prompts import PromptOptions, mean_cosine
from cl_retrieval.hasher import Hasher, training_features
from cl_retrieval.hashing.learning import optimise
from cl_retrieval.hashing.settings import PairTraining
from cl_retrieval.hashing.split import places
from cl_retrieval.hashing.system import train_learner
from cl_retrieval.tasks import DataOptions, SplitOptions

Flat = Parameter(name="*")


def train_model(
    data: Path,
    out: Path,
    *,
    source: DataOptions = DataOptions(),
    split: SplitOptions = SplitOptions(),
    prompts: Annotated[PromptOptions, Flat] = PromptOptions(),
    model: Annotated[APKHConfig, Flat] = APKHConfig(),
    objective: Annotated[APKHSettings, Flat] = APKHSettings(),
    batch_size: int = 100,
    train: Annotated[PairTraining, Flat] = PairTraining(),
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Learn hash functions over attributes from a few pairs; labels are for the evaluation alone.

    Args:
        data: Feature file (.npz, .npy, .mat, .h5), or pairs as for encode-features. The attributes are texts, so a
            feature file needs the encoder it was made with, or the attributes' own features.
        out: Run folder.
        source: Encoder.
        split: Training pairs and queries.
        prompts: Attributes and how they learn.
        model: Kernels and hash head.
        objective: Objective and learning rates.
        batch_size: Pairs a step; the others of a batch are a pair's negatives.
        train: Length of the run and hardware.
        resume: Continue an interrupted run.
        overwrite: Replace an old run.
    """
    features = training_features(data, encoder=source.encoder, normalise=source.normalise, device=source.device)
    division = tasks.split_of(features, split)
    bank = read_bank(prompts.attributes, prompts.template)
    leaked = report_overlap(bank, features, strict=prompts.strict_zero_shot)
    rows = places(features, division.train, data)
    fx, fy = torch.from_numpy(features.image[rows]), torch.from_numpy(features.text[rows])
    centres = first_centres(bank, features, prompts, device=source.device)
    config: dict[str, Any] = {
        "command": "apkh train",
        "data": str(data),
        **dataclasses.asdict(source),
        **dataclasses.asdict(split),
        **dataclasses.asdict(prompts),
        **dataclasses.asdict(model),
        **dataclasses.asdict(objective),
        "batch_size": batch_size,
        **dataclasses.asdict(train),
    }
    with RunFolder.create(out, config, overwrite=overwrite, resume=resume) as run:
        learner = new_learner(fx, fy, centres, model, objective, variance=prompts.variance, seed=train.seed)
        train_learner(learner, fx, fy, run=run, batch_size=batch_size, settings=train)
        origin = {
            "encoder": features.encoder,
            "encoder_fingerprint": features.fingerprint,
            "encoder_source": features.source,
            "attributes": list(bank.phrases),
            "template": bank.template,
            "prompt_mode": prompts.prompt_mode,
        }
        save_model(learner.model, run, origin)
        facts = {
            "attributes": f"{len(bank.phrases)} ({bank.source})",
            "prompts": prompts.prompt_mode,
            "kernel variance": f"{float(learner.model.variance):.4f}",
            **{
                f"effective attributes of a median {name}": f"{number:.1f}"
                for name, number in warn_of_width(learner.model, fx, fy).items()
            },
            "mean cosine of centres": f"{mean_cosine(learner.model.centres):.3f}",
            "attributes that name classes": ", ".join(leaked) or "none",
        }
        tasks.finish_training(run, learner.model, features, division, method="APKH", facts=facts, where=data)
    print(f"model in {out}, report in {out / 'report.html'}")


def new_learner(
    fx: Float[Tensor, "n d"],
    fy: Float[Tensor, "n d"],
    prompts: nn.Module,
    model: APKHConfig = APKHConfig(),
    objective: APKHSettings = APKHSettings(),
    *,
    variance: float | Literal["auto"] = 0.05,
    seed: int = 42,
) -> APKHLearner:
    """A learner with a fresh head, for :func:`cl_retrieval.hashing.learning.optimise` or :func:`train_learner`.

    Args:
        fx: Unit features of the training images.
        fy: Unit features of their texts.
        prompts: Gives the kernel centres.
        model: Kernels and head.
        objective: Objective.
        variance: Width of the kernels; ``auto`` excites a quarter of the attributes.
        seed: Seed of the weights.
    """
    torch.manual_seed(seed)
    with torch.no_grad():
        first = prompts()
    width = variance_for_effective_number(fx, first) if variance == "auto" else variance
    return APKHLearner(APKH(first, model, variance=width), prompts, fx, fy, objective)


def tune(
    data: Path,
    *,
    source: DataOptions = DataOptions(),
    split: SplitOptions = SplitOptions(),
    prompts: Annotated[PromptOptions, Flat] = PromptOptions(),
    model: Annotated[APKHConfig, Flat] = APKHConfig(),
    variances: tuple[float, ...] = (0.03, 0.05, 0.1),
    temperatures: tuple[float, ...] = (0.2, 0.5),
    align_weights: tuple[float, ...] = (0.5,),
    epochs: int = 500,
    batch_size: int = 100,
    seed: int = 42,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Rank settings by how well held-out pairs find each other; needs no labels.

    Args:
        data: Pairs or features.
        source: Encoder.
        split: Training pairs, a fifth of which is held out.
        prompts: Attributes and how they learn.
        model: Kernels and hash head.
        variances: Widths of the kernels; like the others, given once a value.
        temperatures: Temperatures of the contrast.
        align_weights: Weights of the alignment of the views.
        epochs: Passes over the pairs.
        batch_size: Pairs a step.
        seed: Seed of weights and order.
        out: Folder for tune.json.
        json: Print JSON instead of a table.
    """
    features = training_features(data, encoder=source.encoder, normalise=source.normalise, device=source.device)
    bank = read_bank(prompts.attributes, prompts.template)
    grid: dict[str, tuple[float | int, ...]] = {
        "variance": variances,
        "temperature": temperatures,
        "align_weight": align_weights,
    }
    start = first_centres(bank, features, prompts, device=source.device)

    def trained(setting: dict[str, Any], image: Any, text: Any) -> APKH:
        fx, fy = torch.from_numpy(image), torch.from_numpy(text)
        rest = {name: value for name, value in setting.items() if name != "variance"}
        learner = new_learner(
            fx, fy, copy.deepcopy(start), model, APKHSettings(**rest), variance=setting["variance"], seed=seed
        )
        optimise(learner, fx, fy, epochs=epochs, batch_size=batch_size, seed=seed)
        return learner.model

    tasks.tune(features, tasks.split_of(features, split), grid, trained, out=out, json=json, where=data)


def explain(
    run: Path,
    *,
    text: tuple[str, ...] = (),
    image: tuple[Path, ...] = (),
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 10,
    source: DataOptions = DataOptions(),
    json: bool = False,
) -> None:
    """The attributes an image or a text excites most, and those that two of them share.

    Args:
        run: Run folder of train.
        text: Texts; may be given several times.
        image: Image files; may be given several times.
        k: Attributes shown.
        source: Encoder.
        json: Print JSON instead of lines.
    """
    explain_items(
        Hasher.open(run, kind=KIND),
        text=text,
        image=image,
        k=k,
        encoder=source.encoder,
        device=source.device,
        json=json,
    )


def attributes_check(
    file: Path | None = None,
    *,
    template: str = TEMPLATE,
    data: Path | None = None,
    variance: float | Literal["auto"] = 0.05,
    source: DataOptions = DataOptions(),
    json: bool = False,
) -> None:
    """Check a bank of attributes: lines, lengths, overlap with labels, and how many of them an image excites.

    Args:
        file: Text, one phrase a line, or VAW's attribute_index.json; the package's own bank without.
        template: Sentence the phrases are put into, with {a}.
        data: Pairs or features whose labels must not be attributes, and whose images excite them.
        variance: Width of the kernels.
        source: Encoder.
        json: Print JSON instead of lines.
    """
    check_bank(
        read_bank(file, template),
        data,
        variance=variance,
        encoder=source.encoder,
        device=source.device,
        normalise=source.normalise,
        json=json,
    )


def info() -> None:
    """The paper, the claim and how to cite."""
    print(
        "APKH: attribute-prompted kernel hashing for unsupervised data-efficient cross-modal retrieval.\n"
        "  R. Li, X. Ma, Z. Weng, Y. Zhang, G. Luo, H. Zhuang, Z. Lin, Y.-P. Tan, arXiv 2607.00379\n"
        "Claim: hash functions of attribute activations carry over to categories that never occurred among the few\n"
        "training pairs. Measure it with `cl-bench claims apkh`.\n"
        "Note: the equations are a reconstruction from the paper's abstract and its sibling GNAH; see the README."
    )
