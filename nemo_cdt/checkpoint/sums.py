"""The sum of a file: XXH3-128, which is as fast as memory and tells damage, not an attack."""

from pathlib import Path

from xxhash import xxh3_128

BLOCK = 1 << 22
Sum = tuple[int, str]
"""Bytes, and their XXH3-128 in hexadecimal."""


def sum_of(file: Path) -> Sum:
    """Of a file as it is on disk."""
    total, size = xxh3_128(), 0
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            total.update(block)
            size += len(block)
    return size, total.hexdigest()
