"""Checksums in the files of tensors that we write: a flipped bit is found when they are read."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

KEY, LENGTH = "crc32", 8  # of the number in front of a safetensors header
CHECKSUMS = "checksums.sha256"  # in the folder of a data set


def with_checksum(content: bytes) -> bytes:
    """Adds the CRC-32 of the tensors, by name, to the metadata of a safetensors file.

    The format is that of https://github.com/huggingface/safetensors: the length of the header as a
    little-endian number of 8 bytes, the header in JSON, the tensors.
    """
    header, tensors = _parts(content)
    header.setdefault("__metadata__", {})[KEY] = _checksum(header, tensors)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH)  # the tensors stay aligned
    return len(text).to_bytes(LENGTH, "little") + text + tensors


def wrong_checksum(content: bytes) -> bool:
    """Tells whether a safetensors file has another content than when its checksum was made.

    A file without a checksum is somebody else's, and right.
    """
    header, tensors = _parts(content)
    wanted = header.get("__metadata__", {}).get(KEY)
    return wanted is not None and wanted != _checksum(header, tensors)


def _parts(content: bytes) -> tuple[dict, bytes]:
    start = LENGTH + int.from_bytes(content[:LENGTH], "little")
    return json.loads(content[LENGTH:start]), content[start:]


def _checksum(header: dict, tensors: bytes) -> str:
    """Covers names, types, shapes and places too."""
    entries = {k: v for k, v in header.items() if k != "__metadata__"}
    about = json.dumps(entries, sort_keys=True).encode()
    return f"{zlib.crc32(tensors, zlib.crc32(about)):08x}"


def damaged_member(file: Path) -> str | None:
    """Names the first part of a zip archive, such as torch.save writes, with a wrong checksum.

    Raises:
        zipfile.BadZipFile: it is no zip archive.
    """
    with zipfile.ZipFile(file) as archive:
        return archive.testzip()


def sha256_of(file: Any) -> str:
    """Returns the SHA-256 of an open binary file in hexadecimal."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Writes the SHA-256 of every file below the folder, as ``sha256sum`` does."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    lines = []
    for path in files:
        with path.open("rb") as file:
            lines.append(f"{sha256_of(file)}  {path.relative_to(folder).as_posix()}\n")
    (folder / CHECKSUMS).write_text("".join(lines))
