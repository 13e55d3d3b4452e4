"""``cl-video3d``: the commands of this package, by import path so that help needs no torch."""

from typing import NoReturn

from contrastive_core.cli import App, Command

from cl_video3d import __version__

_CECL = "cl_video3d.cecl.commands"

app = App("cl-video3d", help="Contrastive learning for video and 3-D.", version=__version__)
app.method(
    "cecl",
    help="How hard videos are to encode: embeddings from the compression echo, clusters, bit rate ladders.",
    commands=[
        Command("sample-data", f"{_CECL}:sample_data", "Write real, panned and generated videos as .mp4."),
        Command("encode-echo", f"{_CECL}:encode_echo", "Encode clips of videos and measure rate and quality."),
        Command("train", f"{_CECL}:train", "Train a video tower against the echoes of its clips."),
        Command("embed", f"{_CECL}:embed", "Embed clips or new videos."),
        Command("cluster", f"{_CECL}:cluster", "Group clips by rate and quality; learn to predict the group."),
        Command("evaluate", f"{_CECL}:evaluate", "Clusters, rates and ladders told from embeddings and baselines."),
        Command("predict-ladder", f"{_CECL}:predict_ladder", "Cluster, curve and bit rate ladder of new videos."),
        Command("ladder", f"{_CECL}:ladder", "Write the ladder of every cluster."),
        Command("bdrate", f"{_CECL}:bdrate", "Bjøntegaard deltas of two rate-quality curves."),
        Command("search", f"{_CECL}:search", "Nearest videos by complexity."),
        Command("info", f"{_CECL}:info", "The paper, the claim, and the codecs that are here."),
    ],
)


def main() -> NoReturn:
    """Entry point of the console script."""
    app.main()
