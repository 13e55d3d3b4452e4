"""How many bytes of a packet carry pictures: slices and tiles, without headers that do not depend on the content."""

from collections.abc import Iterator

_H264_SLICES = frozenset(range(1, 6))  # ITU-T H.264, table 7-1
_HEVC_SLICES = frozenset(range(32))  # ITU-T H.265, table 7-1: VCL NAL unit types
_AV1_FRAMES = frozenset({3, 4, 6})  # AV1 specification, 6.2.2: frame header, tile group, frame


def slice_bytes(packet: bytes, codec: str) -> int:
    """Bytes of a packet that carry pictures.

    An encoder's parameter sets and messages do not depend on the content (x264 writes about 670 bytes of them into the
    first packet) and would hide how little a simple clip costs.

    Args:
        packet: One packet as the encoder gives it: Annex B for ``h264`` and ``hevc``, a temporal unit of OBUs for
            ``av1``, a (super)frame for ``vp9``.
        codec: ``h264``, ``hevc``, ``av1`` or ``vp9``.

    Returns:
        Bytes of NAL units of type 1 to 5 (h264) or 0 to 31 (hevc) with their headers, of frame and tile OBUs (av1), or
        of the whole frame (vp9, whose frames carry nothing else).

    Raises:
        ValueError: An unknown codec, or a packet that does not parse.

    Example:
        >>> slice_bytes(bytes([0, 0, 0, 1, 0x67, 1, 2, 0, 0, 1, 0x65, 9, 9]), "h264")  # parameter set, then 3 bytes
        3
    """
    if codec == "h264":
        return sum(len(unit) for unit in annexb_units(packet) if unit[0] & 0x1F in _H264_SLICES)
    if codec == "hevc":
        return sum(len(unit) for unit in annexb_units(packet) if (unit[0] >> 1) & 0x3F in _HEVC_SLICES)
    if codec == "av1":
        return sum(size for kind, size in obu_sizes(packet) if kind in _AV1_FRAMES)
    if codec == "vp9":
        return len(packet)
    raise ValueError(f"the codec is h264, hevc, av1 or vp9, got {codec!r}")


def annexb_units(packet: bytes) -> Iterator[bytes]:
    """NAL units between the start codes of a byte stream (ITU-T H.264, annex B), without trailing zero bytes.

    Raises:
        ValueError: The packet does not begin with a start code.
    """
    start = packet.find(b"\0\0\1")
    if start < 0 or any(packet[:start]):
        raise ValueError("the packet does not begin with a start code")
    while start >= 0:
        end = packet.find(b"\0\0\1", start + 3)
        unit = packet[start + 3 : end if end >= 0 else len(packet)].rstrip(b"\0")
        if unit:
            yield unit
        start = end


def obu_sizes(packet: bytes) -> Iterator[tuple[int, int]]:
    """Type and size, header included, of the open bitstream units of a packet (AV1 specification, 5.3).

    Raises:
        ValueError: A unit runs over the end of the packet.
    """
    place = 0
    while place < len(packet):
        header = packet[place]
        start = place
        place += 1 + bool(header & 0x04)
        if header & 0x02:
            size, place = _leb128(packet, place)
        else:
            size = len(packet) - place
        place += size
        if place > len(packet):
            raise ValueError("an open bitstream unit runs over the end of the packet")
        yield (header >> 3) & 0x0F, place - start


def _leb128(packet: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 56, 7):
        if place >= len(packet):
            break
        byte = packet[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, place
    raise ValueError("the size of an open bitstream unit does not end")
