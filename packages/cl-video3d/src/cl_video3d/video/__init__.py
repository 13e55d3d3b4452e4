"""What methods on video share: reading, lists, encoders, quality, and Bjøntegaard deltas."""

from cl_video3d.video.bitstream import slice_bytes
from cl_video3d.video.bjontegaard import Delta, bd_quality, bd_rate
from cl_video3d.video.encoding import Codec, Encoded, EncodeSetting, encode
from cl_video3d.video.manifest import Entry, read_manifest, write_manifest
from cl_video3d.video.planes import to_rgb
from cl_video3d.video.reading import RawFormat, VideoInfo, Window, luma, probe
from cl_video3d.video.windows import read_windows

__all__ = [
    "Codec",
    "Delta",
    "EncodeSetting",
    "Encoded",
    "Entry",
    "RawFormat",
    "VideoInfo",
    "Window",
    "bd_quality",
    "bd_rate",
    "encode",
    "luma",
    "probe",
    "read_manifest",
    "read_windows",
    "slice_bytes",
    "to_rgb",
    "write_manifest",
]
