"""Is this file a whole image, and how large? Told from its structure with the standard library; decoded too where Pillow is installed.

The structure tells a file that was cut short, is empty, or is something else under an image's name: what broken downloads and copies look
like. A flipped bit in the middle needs a decode.

Rules for editing: pure but for ``decode_fault``. Images are somebody else's bytes: any of them may lie about any length.
"""

from __future__ import annotations

import importlib.util
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp"})
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
#: A decoded image takes 4 bytes a pixel: beyond this somebody wants to fill our memory.
_MAX_PIXELS = 500_000_000


class Fault(Exception):
    """Why it is not a whole image."""


@dataclass(frozen=True, slots=True)
class Image:
    """What the header says."""

    format: str
    width: int
    height: int


def examine(data: bytes) -> Image:
    """Return format and size; Fault if the file is cut short, empty or no image."""
    if not data:
        raise Fault("is empty")
    for magic, read in _READERS:
        if data.startswith(magic):
            try:
                image = read(data)
            except (struct.error, IndexError) as error:
                raise Fault("is cut short") from error
            if not 0 < image.width * image.height <= _MAX_PIXELS:
                raise Fault(f"says it has {image.width} × {image.height} pixels")
            return image
    raise Fault(f"is no image: it begins with {data[:8]!r}")


def decode_fault(path: Path) -> str:
    """Return why Pillow cannot decode the image; empty if it can, or is not installed."""
    if importlib.util.find_spec("PIL") is None:
        return ""
    from PIL import Image as Pillow

    try:
        with Pillow.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, struct.error, Pillow.DecompressionBombError, zlib.error) as error:
        return f"cannot be decoded: {str(error)[:120]}"
    return ""


def _jpeg(data: bytes) -> Image:
    at, found = 2, None
    while True:
        if data[at] != 0xFF:
            raise Fault("has a broken structure")
        while data[at] == 0xFF:  # fill bytes
            at += 1
        marker = data[at]
        at += 1
        if marker in _STANDALONE:
            continue
        if marker == 0xD9:
            break
        (length,) = struct.unpack_from(">H", data, at)
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", data, at + 3)
            found = Image("JPEG", width, height)
        at += length
        if marker == 0xDA:
            # Coded data, maybe several scans: the end marker must follow; cameras and phones append things after it.
            if data.rfind(b"\xff\xd9", at) < 0:
                raise Fault("is cut short")
            break
        if at > len(data):
            raise Fault("is cut short")
    if found is None:
        raise Fault("has no frame")
    return found


def _png(data: bytes) -> Image:
    width, height = struct.unpack_from(">II", data, 16)
    at, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise Fault("is cut short")
        if struct.unpack_from(">I", data, end - 4)[0] != zlib.crc32(memoryview(data)[at + 4 : end - 4]):
            raise Fault(f"has damaged bytes in its {kind.decode('latin-1')} chunk")
        at = end
    return Image("PNG", width, height)


def _webp(data: bytes) -> Image:
    (size,) = struct.unpack_from("<I", data, 4)
    if data[8:12] != b"WEBP":
        raise Fault("is a RIFF file, but no WebP image")
    if size + 8 > len(data):
        raise Fault("is cut short")
    match data[12:16]:
        case b"VP8X":
            return Image("WebP", 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little"))
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return Image("WebP", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
        case _:
            width, height = struct.unpack_from("<HH", data, 26)
            return Image("WebP", width & 0x3FFF, height & 0x3FFF)


def _gif(data: bytes) -> Image:
    width, height = struct.unpack_from("<HH", data, 6)
    if b"\x3b" not in data[-64:]:  # the trailer; some writers pad after it
        raise Fault("is cut short")
    return Image("GIF", width, height)


def _bmp(data: bytes) -> Image:
    size, _, _, _, width, height = struct.unpack_from("<IHHIxxxxii", data, 2)
    if size > len(data):
        raise Fault("is cut short")
    return Image("BMP", width, abs(height))


_READERS: tuple[tuple[bytes, Callable[[bytes], Image]], ...] = (
    (b"\xff\xd8\xff", _jpeg),
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"RIFF", _webp),
    (b"GIF87a", _gif),
    (b"GIF89a", _gif),
    (b"BM", _bmp),
)
