"""The verbs of ``cl-retrieval gnah``; the same functions are the Python interface."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import torch
from contrastive_core.training import RunFolder
from cyclopts import Parameter
from jaxtyping import Float
from torch import Tensor

from cl_retrieval import tasks
from cl_retrieval.gnah.learner import GNAHLearner, GNAHSettings
from cl_retrieval.gnah.model import GNAH, GNAHConfig, load_model, save_model
from cl_retrieval.hasher import Hasher, training_features
from cl_retrieval.hashing.evaluation import Conventions
from cl_retrieval.hashing.learning import optimise
from cl_retrieval.hashing.settings import PairTraining
from cl_retrieval.hashing.split import Protocol, places
from cl_retrieval.hashing.system import train_learner
from cl_retrieval.index.interface import Modality
from cl_retrieval.tasks import DataOptions, Find, Sides, SplitOptions

Flat = Parameter(name="*")


def sample_data(out: Path, *, limit: int | None = None, overwrite: bool = False) -> None:
    """Write real drawings with names and subcategories, and an encoder of both that runs offline.

    Args:
        out: Folder to write.
        limit: Fewer pictures, evenly taken.
        overwrite: Replace a folder that is there.
    """
    tasks.sample_data(out, limit=limit, overwrite=overwrite)


def encode_features(
    data: Path,
    out: Path,
    *,
    encoder: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    batch_size: int = 64,
    overwrite: bool = False,
) -> None:
    """Compute the features of image-text pairs once; an interrupted call continues where it was.

    Args:
        data: Table (.jsonl, .csv, .tsv, .txt, COCO's .json), or a folder with one, or a published set.
        out: .npz to write.
        encoder: open_clip:ARCHITECTURE/TAG-OR-PATH, local-dir:FOLDER, or the folder of a stand-in; by default what lies
            beside the pairs as `encoder`, else CLIP ViT-B/16.
        device: Device of the encoder.
        dtype: Its precision: float32, bfloat16, float16.
        batch_size: Images a pass.
        overwrite: Replace an existing file.
    """
    tasks.encode_features(
        data, out, encoder=encoder, device=device, dtype=dtype, batch_size=batch_size, overwrite=overwrite
    )


def train_model(
    data: Path,
    out: Path,
    *,
    source: DataOptions = DataOptions(),
    split: SplitOptions = SplitOptions(),
    model: Annotated[GNAHConfig, Flat] = GNAHConfig(),
    objective: Annotated[GNAHSettings, Flat] = GNAHSettings(),
    batch_size: int = 100,
    train: Annotated[PairTraining, Flat] = PairTraining(),
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Learn hash functions of images and texts from a few pairs; labels are for the evaluation alone.

    Args:
        data: Feature file (.npz, .npy, .mat, .h5), or pairs as for encode-features.
        out: Run folder.
        source: Encoder.
        split: Training pairs and queries.
        model: Hash functions.
        objective: Objective and learning rate.
        batch_size: Pairs a step; the others of a batch are a pair's negatives.
        train: Length of the run and hardware.
        resume: Continue an interrupted run.
        overwrite: Replace an old run.
    """
    features = training_features(data, encoder=source.encoder, normalise=source.normalise, device=source.device)
    division = tasks.split_of(features, split)
    rows = places(features, division.train, data)
    fx, fy = torch.from_numpy(features.image[rows]), torch.from_numpy(features.text[rows])
    config: dict[str, Any] = {
        "command": "gnah train", "data": str(data), **dataclasses.asdict(source), **dataclasses.asdict(split),
        **dataclasses.asdict(model), **dataclasses.asdict(objective), "batch_size": batch_size,
        **dataclasses.asdict(train),
    }  # fmt: skip
    with RunFolder.create(out, config, overwrite=overwrite, resume=resume) as run:
        learner = new_learner(fx, fy, model, objective, epochs=train.epochs, seed=train.seed)
        train_learner(learner, fx, fy, run=run, batch_size=batch_size, settings=train)
        origin = {
            "encoder": features.encoder, "encoder_fingerprint": features.fingerprint, "encoder_source": features.source,
        }  # fmt: skip
        save_model(learner.model, run, origin)
        facts = {"prototypes": len(learner.prototypes), "purity of prototypes by modality": f"{learner.purity:.2f}",
                 "distinct anchors": learner.distinct_anchors(), "variant": objective.variant}  # fmt: skip
        tasks.finish_training(run, learner.model, features, division, method="GNAH", facts=facts, where=data)
    print(f"model in {out}, report in {out / 'report.html'}")


def new_learner(
    fx: Float[Tensor, "n d"],
    fy: Float[Tensor, "n d"],
    model: GNAHConfig = GNAHConfig(),
    objective: GNAHSettings = GNAHSettings(),
    *,
    epochs: int = 500,
    seed: int = 42,
) -> GNAHLearner:
    """A learner with fresh hash functions, for :func:`cl_retrieval.hashing.learning.optimise` or :func:`train_learner`.

    Args:
        fx: Unit features of the training images.
        fy: Unit features of their texts.
        model: Hash functions.
        objective: Objective.
        epochs: Length of the training.
        seed: Seed of weights, prototypes and anchors.
    """
    torch.manual_seed(seed)
    return GNAHLearner(GNAH(fx.shape[1], model), fx, fy, objective, epochs=epochs, seed=seed)


def evaluate(
    run: Path,
    data: Path,
    *,
    source: DataOptions = DataOptions(),
    conventions: Annotated[Conventions, Flat] = Conventions(),
    queries: int | None = None,
    protocol: Protocol | None = None,
    out: Path | None = None,
    json: bool = False,
    overwrite: bool = False,
) -> None:
    """Mean average precision, precision at k and curves of both directions, on labelled pairs.

    Args:
        run: Run folder of train.
        data: Labelled pairs or features; those of the training by default division.
        source: Encoder.
        conventions: Cut-off, denominator, empty queries, radius.
        queries: Set so many queries apart anew, instead of those of the run.
        protocol: Refuse a run of another protocol.
        out: Folder for evaluation.json and report.html.
        json: Print JSON instead of a table.
        overwrite: Replace old results in that folder.
    """
    tasks.evaluate(
        Hasher.open(run, load_model), data, options=source, conventions=conventions, queries=queries, protocol=protocol,
        out=out, json=json, overwrite=overwrite,
    )  # fmt: skip


def encode(
    run: Path,
    data: Path,
    out: Path,
    *,
    source: DataOptions = DataOptions(),
    sides: Sides = "both",
    features: bool = True,
    overwrite: bool = False,
) -> None:
    """Pack images and texts into codes.

    Args:
        run: Run folder of train.
        data: Pairs or features.
        out: .npz to write: ids, codes (first bit highest), modality, payloads, and features.
        source: Encoder.
        sides: Encode both sides of the pairs, or one.
        features: Keep the features beside the codes, for re-ranking.
        overwrite: Replace an existing file.
    """
    tasks.encode(
        Hasher.open(run, load_model),
        data,
        out,
        options=source,
        sides=sides,
        keep_features=features,
        overwrite=overwrite,
    )


def index_build(
    run: Path,
    index: str,
    data: Path | None = None,
    *,
    source: DataOptions = DataOptions(),
    sides: Sides = "both",
    features: bool = True,
    overwrite: bool = False,
) -> None:
    """Build an index of codes.

    Args:
        run: Run folder of train.
        index: Folder of an embedded index, http://host:19530#collection of a Milvus server, or NAME.db of Milvus Lite.
        data: Pairs, features, or codes of encode; an empty index without.
        source: Encoder.
        sides: Index both sides of the pairs, or one.
        features: Keep features for re-ranking.
        overwrite: Replace an index that is there.
    """
    tasks.index_build(
        Hasher.open(run, load_model),
        index,
        data,
        options=source,
        sides=sides,
        keep_features=features,
        overwrite=overwrite,
    )


def index_add(run: Path, index: str, data: Path, *, source: DataOptions = DataOptions(), sides: Sides = "both") -> None:
    """Add pairs to an index.

    Args:
        run: Run folder the index was made with.
        index: Folder or URI.
        data: Pairs, features, or codes of encode.
        source: Encoder.
        sides: Add both sides of the pairs, or one.
    """
    tasks.index_add(Hasher.open(run, load_model), index, data, options=source, sides=sides)


def index_delete(index: str, *, id: tuple[str, ...] = (), modality: Modality | None = None) -> None:
    """Delete items from an index.

    Args:
        index: Folder or URI.
        id: What to delete; may be given several times.
        modality: Delete only the image or the text of these ids.
    """
    tasks.index_delete(index, id, modality=modality)


def index_info(index: str, *, json: bool = False) -> None:
    """What an index holds.

    Args:
        index: Folder or URI.
        json: Print JSON.
    """
    tasks.index_info(index, json=json)


def search(
    run: Path,
    index: str,
    *,
    text: tuple[str, ...] = (),
    image: tuple[Path, ...] = (),
    features: Path | None = None,
    asking: Modality = "text",
    find: Find = "image",
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 10,
    radius: int | None = None,
    rerank: int | None = None,
    source: DataOptions = DataOptions(),
    out: Path | None = None,
) -> None:
    """Search an index by text or image; one line of JSON a hit.

    Args:
        run: Run folder the index was made with.
        index: Folder or URI.
        text: Texts to search with; may be given several times.
        image: Image files to search with; may be given several times.
        features: Feature file to search with instead.
        asking: Which side of that file asks.
        find: Find images, texts, or either.
        k: Most hits a query.
        radius: Largest Hamming distance of a hit.
        rerank: Order so many nearest codes by the cosine of the features.
        source: Encoder.
        out: File for the hits, instead of printing them.
    """
    tasks.search(
        Hasher.open(run, load_model), index, text=text, image=image, features=features, asking=asking, find=find, k=k,
        radius=radius, rerank=rerank, options=source, out=out,
    )  # fmt: skip


def tune(
    data: Path,
    *,
    source: DataOptions = DataOptions(),
    split: SplitOptions = SplitOptions(),
    model: Annotated[GNAHConfig, Flat] = GNAHConfig(),
    betas: tuple[float, ...] = (0.25, 0.5),
    gammas: tuple[float, ...] = (0.01, 0.03),
    temperatures: tuple[float, ...] = (0.2, 0.5),
    ks: tuple[int, ...] = (),
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
        model: Hash functions.
        betas: First weights of the prototype alignment; like the others, given once a value.
        gammas: Its decays.
        temperatures: Temperatures.
        ks: Numbers of prototypes; the elbow's without.
        epochs: Passes over the pairs.
        batch_size: Pairs a step.
        seed: Seed of weights and order.
        out: Folder for tune.json.
        json: Print JSON instead of a table.
    """
    features = training_features(data, encoder=source.encoder, normalise=source.normalise, device=source.device)
    grid: dict[str, tuple[float | int, ...]] = {"beta": betas, "gamma": gammas, "temperature": temperatures}
    if ks:
        grid["k"] = ks

    def trained(setting: dict[str, Any], image: Any, text: Any) -> GNAH:
        fx, fy = torch.from_numpy(image), torch.from_numpy(text)
        learner = new_learner(fx, fy, model, GNAHSettings(**setting), epochs=epochs, seed=seed)
        optimise(learner, fx, fy, epochs=epochs, batch_size=batch_size, seed=seed)
        return learner.model

    tasks.tune(features, tasks.split_of(features, split), grid, trained, out=out, json=json, where=data)


def info() -> None:
    """The paper, the claim and how to cite."""
    print(
        "GNAH: unsupervised data-efficient cross-modal retrieval with global-neighborhood alignment hashing.\n"
        "  R. Li, X. Ma, Z. Weng, Y. Zhang, G. Luo, H. Zhuang, Z. Lin, Y.-P. Tan, arXiv 2606.31517\n"
        "Claim: from 20 to 160 unlabelled image-text pairs, prototypes and neighbourhoods give better binary codes\n"
        "than contrasting the pairs themselves. Measure it with `cl-bench claims gnah`."
    )
