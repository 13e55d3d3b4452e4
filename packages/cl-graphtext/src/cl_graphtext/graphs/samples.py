"""Real graphs of text that are at hand: Debian's packages, or the installed Python distributions."""

import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.files import read_text

from cl_graphtext.graphs.graph import TextGraph, build, degrees

Source = Literal["auto", "debian", "python"]

SECTIONS = ("science", "games", "sound", "graphics", "math", "web", "mail", "editors", "database", "video")
_RELATIONS = ("Depends", "Pre-Depends", "Recommends", "Suggests", "Enhances")
_NAME = re.compile(r"\s*([a-z0-9][a-z0-9+.-]*)")


def sample_graph(source: Source = "auto", *, nodes: int = 1500, packages: Path | None = None) -> TextGraph:
    """A text-attributed graph of real packages.

    Args:
        source: ``debian``, ``python``, or whichever is there.
        nodes: Most nodes; the graph grows from its largest hubs. 0 for all.
        packages: A ``Packages`` or dpkg status file instead of the machine's own index.

    Raises:
        InputError: Neither source is there, or it is too small.
    """
    if source in ("auto", "debian"):
        text = _dump(packages)
        if text:
            graph = debian_graph(text)
            if len(graph) >= 100 or source == "debian" or packages is not None:
                return _shrink(graph, nodes)
        if source == "debian":
            raise InputError(
                "there is no package index on this machine",
                where="--source debian",
                remedy="name a Packages file with --packages, or use --source python",
            )
    return _shrink(python_graph(), nodes)


def debian_graph(index: str) -> TextGraph:
    """Packages of ten sections, joined where one names the other as a dependency.

    An edge is any of Depends, Pre-Depends, Recommends, Suggests and Enhances, without versions, alternatives and
    architectures. Packages of one source are near-duplicates of each other: edges between them are left out, and so are
    packages without an edge. The label is the section; debtags name it and never enter the text.

    Args:
        index: Text of a ``Packages`` file, of ``apt-cache dumpavail`` or of the dpkg status file.
    """
    packages: dict[str, Mapping[str, str]] = {}
    for fields in _stanzas(index):
        section = fields.get("Section", "").rsplit("/", 1)[-1]
        name = fields.get("Package", "")
        if section in SECTIONS and name and name not in packages:
            packages[name] = {**fields, "Section": section}
    names = sorted(packages)
    place = {name: i for i, name in enumerate(names)}
    source = [packages[name].get("Source", name).split(" ")[0] for name in names]
    edges = [
        (place[name], place[other])
        for name in names
        for relation in _RELATIONS
        for other in _related(packages[name].get(relation, ""))
        if other in place and source[place[name]] != source[place[other]]
    ]
    return _connected(
        names=names,
        texts=[packages[name].get("Description", "") for name in names],
        labels=[packages[name]["Section"] for name in names],
        classes=SECTIONS,
        edges=edges,
        where="package index",
    )


def python_graph() -> TextGraph:
    """The installed Python distributions, joined by Requires-Dist; the label is the most frequent kind of topic.

    Raises:
        InputError: Too few of them name a topic.
    """
    packages: dict[str, tuple[str, str, list[str]]] = {}
    for entry in importlib.metadata.distributions():
        meta = entry.metadata
        name = _normal(str(meta["Name"] or ""))
        topics = [value for value in meta.get_all("Classifier") or [] if value.startswith("Topic :: ")]
        if name and name not in packages:
            topic = topics[0].split(" :: ")[1] if topics else ""
            needs = [_normal(re.split(r"[^A-Za-z0-9._-]", need, maxsplit=1)[0]) for need in entry.requires or []]
            packages[name] = (str(meta["Summary"] or ""), topic, needs)
    names = sorted(packages)
    place = {name: i for i, name in enumerate(names)}
    labels = [packages[name][1] for name in names]
    classes = tuple(topic for topic in sorted(set(labels)) if topic and labels.count(topic) >= 3)
    if len(classes) < 2:
        raise InputError(
            "the installed Python packages make no graph",
            why="fewer than two topics have three packages",
            remedy="name a Packages file with --packages, or import a graph",
        )
    return _connected(
        names=names,
        texts=[packages[name][0] for name in names],
        labels=labels,
        classes=classes,
        edges=[(place[name], place[need]) for name in names for need in packages[name][2] if need in place],
        where="installed distributions",
    )


def _connected(
    *,
    names: list[str],
    texts: list[str],
    labels: list[str],
    classes: tuple[str, ...],
    edges: list[tuple[int, int]],
    where: str,
) -> TextGraph:
    pairs = np.unique(np.array([pair for pair in edges if pair[0] != pair[1]], np.int64).reshape(-1, 2), axis=0)
    number = {name: i for i, name in enumerate(classes)}
    graph = build(
        ids=names,
        texts=texts,
        titles=names,
        labels=np.array([number.get(label, -1) for label in labels], np.int64),
        classes=classes,
        edges=pairs,
        noun="package",
        where=where,
    )
    return graph.subgraph(np.flatnonzero(degrees(graph.edges, len(graph)) > 0))


def _shrink(graph: TextGraph, nodes: int) -> TextGraph:
    """The part of a graph found first by a breadth-first walk from its hubs, so that it stays connected and dense."""
    if not nodes or len(graph) <= nodes:
        return graph
    degree = degrees(graph.edges, len(graph))
    adjacent: list[list[int]] = [[] for _ in range(len(graph))]
    for a, b in graph.edges.tolist():
        adjacent[a].append(b)
        adjacent[b].append(a)
    seen = np.zeros(len(graph), bool)
    queue: list[int] = []
    # One root a class, so that every class is there however small the part.
    for label in range(len(graph.classes)):
        members = np.flatnonzero(graph.labels == label)
        if len(members):
            queue.append(int(members[degree[members].argmax()]))
    seen[queue] = True
    head = 0
    while len(queue) < nodes:
        if head == len(queue):
            rest = np.flatnonzero(~seen)
            queue.append(int(rest[degree[rest].argmax()]))
            seen[queue[-1]] = True
        for other in adjacent[queue[head]]:
            if not seen[other] and len(queue) < nodes:
                seen[other] = True
                queue.append(other)
        head += 1
    part = graph.subgraph(np.sort(np.array(queue)))
    return part.subgraph(np.flatnonzero(degrees(part.edges, len(part)) > 0))


def _dump(packages: Path | None) -> str:
    if packages is not None:
        return read_text(packages)
    if shutil.which("apt-cache"):
        done = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, timeout=120, check=False)
        if done.returncode == 0 and done.stdout:
            return done.stdout.decode("utf-8", errors="replace")
    status = Path("/var/lib/dpkg/status")
    return status.read_text(encoding="utf-8", errors="replace") if status.is_file() else ""


def _stanzas(index: str) -> Iterable[dict[str, str]]:
    for stanza in index.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.split("\n"):
            if line[:1] in (" ", "\t"):
                if name:
                    fields[name] += " " + line.strip().lstrip(".")
            else:
                name, _, value = line.partition(":")
                # The long description, where an index carries one, follows the short one in the same field.
                name = "Description" if name.startswith("Description-") and name != "Description-md5" else name
                fields[name] = value.strip()
        if fields:
            yield fields


def _related(field: str) -> Iterable[str]:
    for part in field.replace("|", ",").split(","):
        match = _NAME.match(part)
        if match:
            yield match.group(1)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
