"""The verbs that every method of hashing has; a method binds them to the encoders that it loads."""

from pathlib import Path
from typing import Annotated, Literal

from contrastive_core.cli import Flat
from contrastive_core.errors import require
from contrastive_core.files import json_text, refuse_existing, refuse_filled, write_json
from contrastive_core.index import build_index, open_index
from contrastive_core.index.interface import Modality
from contrastive_core.index.verbs import progress_bar
from contrastive_core.tables import print_rows, text_table

from cl_retrieval.hashing.data import FeatureOptions, default_encoder, features_for, queries_in, queries_of
from cl_retrieval.hashing.evaluation import Conventions, evaluate_split, table_rows
from cl_retrieval.hashing.inference import HashEncoder
from cl_retrieval.hashing.items import Sides, items_of, write_codes
from cl_retrieval.hashing.report import evaluation_report
from cl_retrieval.hashing.search import SearchOptions, search_index, write_hits
from cl_retrieval.hashing.split import Protocol, Split
from cl_retrieval.pairs.embedding import embed_to_file
from cl_retrieval.pairs.raw import read_pairs
from cl_retrieval.pairs.samples import write_samples

Source = Annotated[FeatureOptions, Flat]


def sample_data(out: Path, *, limit: int | None = None, overwrite: bool = False) -> None:
    """Write real drawings with names and subcategories, and an encoder of both that runs offline.

    Args:
        out: Folder to write.
        limit: Fewer pictures, evenly taken.
        overwrite: Replace a folder that is there.
    """
    print(write_samples(out, limit=limit, overwrite=overwrite))


def prepare(
    data: Path,
    out: Path,
    *,
    encoder: str | None = None,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    batch_size: int = 64,
    overwrite: bool = False,
) -> None:
    """Compute the features of image-text pairs once; an interrupted call continues where it was.

    Args:
        data: Table (.jsonl, .csv, .tsv, .txt, COCO's .json), or a folder with one, or a published set.
        out: .npz to write.
        encoder: open_clip:ARCHITECTURE/TAG-OR-PATH, local-dir:FOLDER, or the folder of a stand-in; by default what lies
            beside the pairs as `encoder`, else CLIP ViT-B/16.
        device: auto (a GPU where there is one), cpu or cuda.
        dtype: Precision of the encoder.
        batch_size: Images a pass.
        overwrite: Replace an existing file.
    """
    refuse_existing(out, overwrite)
    require(1 <= batch_size <= 10**6, "--batch-size", batch_size, "a whole number from 1 to 1,000,000")
    pairs = read_pairs(data)
    source = default_encoder(data, encoder)
    loaded = FeatureOptions(device=device).load(source, dtype=dtype)
    features = embed_to_file(pairs, loaded, out, source=source, batch_size=batch_size)
    print(f"{len(features)} pairs of width {features.dim} by {features.encoder} in {out}")


class HashCommands:
    """Verbs of trained hash functions.

    Args:
        encoder: The method's encoders.
    """

    def __init__(self, encoder: type[HashEncoder]) -> None:
        self._encoder = encoder

    def evaluate(
        self,
        run: Path,
        data: Path,
        *,
        source: Source = FeatureOptions(),
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
        refuse_filled(out, overwrite)
        hashes = self._encoder.load(run, device=source.device)
        features = features_for(hashes, data, source)
        split = Split.read(run).asked(features, queries=queries, protocol=protocol)
        results = evaluate_split(hashes, features, split, where=data, conventions=conventions)
        if out is not None:
            write_json(out / "evaluation.json", results)
            evaluation_report(run, hashes, features, split, results, where=data).write(out / "report.html")
        print(json_text(results) if json else text_table(table_rows(results)))

    def embed(
        self,
        run: Path,
        data: Path,
        out: Path,
        *,
        source: Source = FeatureOptions(),
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
        refuse_existing(out, overwrite)
        hashes = self._encoder.load(run, device=source.device)
        items = items_of(hashes, data, options=source, sides=sides, keep_features=features)
        write_codes(out, hashes, items)
        print(f"{len(items.ids)} codes of {hashes.bits} bits in {out}")

    def index_build(
        self,
        run: Path,
        data: Path,
        index: str,
        *,
        source: Source = FeatureOptions(),
        sides: Sides = "both",
        features: bool = True,
        overwrite: bool = False,
    ) -> None:
        """Build an index of codes.

        Args:
            run: Run folder of train.
            data: Pairs, features, or codes of embed.
            index: Folder of an embedded index, http://host:19530#collection of a Milvus server, or NAME.db of Milvus
                Lite.
            source: Encoder.
            sides: Index both sides of the pairs, or one.
            features: Keep features for re-ranking.
            overwrite: Replace an index that is there.
        """
        hashes = self._encoder.load(run, device=source.device)
        items = items_of(hashes, data, options=source, sides=sides, keep_features=features)
        with (
            progress_bar() as progress,
            build_index(index, hashes.identity, items, overwrite=overwrite, progress=progress) as built,
        ):
            size = built.info().size
        print(f"{size:,} items in {index}")

    def index_add(
        self, run: Path, data: Path, index: str, *, source: Source = FeatureOptions(), sides: Sides = "both"
    ) -> None:
        """Add pairs to an index.

        Args:
            run: Run folder the index was made with.
            data: Pairs, features, or codes of embed.
            index: Folder or URI.
            source: Encoder.
            sides: Add both sides of the pairs, or one.
        """
        hashes = self._encoder.load(run, device=source.device)
        with open_index(index, hashes.identity) as opened:
            keep = opened.info().features > 0
            items = items_of(hashes, data, options=source, sides=sides, keep_features=keep)
            opened.add(items)
            print(f"{len(items.ids):,} items added, {opened.info().size:,} in {index}")

    def search(
        self,
        run: Path,
        index: str,
        *,
        text: tuple[str, ...] = (),
        image: tuple[Path, ...] = (),
        features: Path | None = None,
        asking: Modality = "text",
        asked: Annotated[SearchOptions, Flat] = SearchOptions(),
        source: Source = FeatureOptions(),
        out: Path | None = None,
        json: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Search an index by text or image.

        Args:
            run: Run folder the index was made with.
            index: Folder or URI.
            text: Texts to search with; may be given several times.
            image: Image files to search with; may be given several times.
            features: Feature file to search with instead.
            asking: Which side of that file asks.
            asked: Which hits, and how many.
            source: Encoder.
            out: File for the hits, one JSON object a line.
            json: Print JSON instead of a table.
            overwrite: Replace an existing file.
        """
        if out is not None:
            refuse_existing(out, overwrite)
        hashes = self._encoder.load(run, device=source.device)
        if features is not None:
            queries = queries_in(hashes, features, asking, normalise=source.normalise)
        else:
            queries = queries_of(hashes, text=text, image=image, options=source)
        hits = search_index(hashes, index, queries, asked)
        if out is None:
            print_rows(hits, json=json)
            return
        write_hits(out, hits)
        print(f"{len(hits):,} hits of {len(queries):,} queries in {out}")
