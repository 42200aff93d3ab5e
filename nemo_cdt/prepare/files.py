"""Where the rows of a data set's files are, and the rows themselves; no file is ever held whole."""

import mmap
import re
from collections.abc import Iterator
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from nemo_cdt.prepare.settings import Kind
from nemo_cdt.utils.reading import blamed_on, read_lines

FILE, LINE, START, SIZE = range(4)
"""Columns of an index, int64 [rows, 4]. Its file's place in the list; its line there (in a JSON array and in a parquet
file the number of the row), from 1; its first byte, in a parquet file its row from 0; its bytes, there on average."""

_JSON = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_ROWS_AT_ONCE = 16


def find_files(path: Path, kind: Kind) -> list[Path]:
    """The files that hold the rows, in a fixed order. Of a data set in splits, as the Hub has it, those to train on.

    Raises:
        ValueError: where there are none, or one is empty.
    """
    suffixes = (".parquet", ".txt") if kind is Kind.books else (".jsonl", ".json")
    found = [path]
    if path.is_dir():
        by_suffix = ([file for file in path.rglob(f"*{suffix}") if file.is_file()] for suffix in suffixes)
        found = sorted(next(filter(None, by_suffix), []))
    elif path.suffix not in suffixes:
        raise ValueError(f"{path} is no {' or '.join(suffixes)} file")
    if not found:
        raise ValueError(f"{path} holds no {' or '.join(suffixes)} file")
    for file in found:
        if file.stat().st_size == 0:
            raise ValueError(f"{file} is empty")
    return [file for file in found if file.name.startswith("train-")] or found


def index_of(files: list[Path]) -> np.ndarray:
    """Where each row of each file is.

    Raises:
        ValueError: for a file that is not what its name says.
    """
    tables = []
    for number, file in enumerate(files):
        table = np.fromiter(chain.from_iterable(_rows_of(file)), dtype=np.int64).reshape(-1, 3)
        tables.append(np.insert(table, FILE, number, axis=1))
    index = np.concatenate(tables)
    if not len(index):
        raise ValueError(f"{files[0]}: no rows")
    return index


def read_rows(files: list[Path], index: np.ndarray) -> Iterator[Any]:
    """The rows at these places, which are in the order of the files: bytes of a file, a dict of a parquet file."""
    for number, places in groupby(index.tolist(), key=itemgetter(FILE)):
        yield from _read(files[number], list(places))


def _rows_of(file: Path) -> Iterator[tuple[int, int, int]]:
    """Line, start and size of each row."""
    if file.suffix == ".parquet":
        return _parquet_rows(file)
    if file.suffix == ".txt":
        return iter([(1, 0, file.stat().st_size)])
    with file.open("rb") as stream:
        first = stream.read(1 << 16).lstrip()[:1]
    return _array_rows(file) if first == b"[" else _line_rows(file)


def _parquet_rows(file: Path) -> Iterator[tuple[int, int, int]]:
    with blamed_on(file, "not a parquet file", whatever=True), _parquet(file) as parquet:
        rows, groups = parquet.metadata.num_rows, range(parquet.metadata.num_row_groups)
        size = sum(parquet.metadata.row_group(group).total_byte_size for group in groups) // max(1, rows)
    return ((row + 1, row, size) for row in range(rows))


def _line_rows(file: Path) -> Iterator[tuple[int, int, int]]:
    start = 0
    for line, content in read_lines(file):
        if not content.isspace():
            yield line, start, len(content)
        start += len(content)


def _array_rows(file: Path) -> Iterator[tuple[int, int, int]]:
    """Objects of an array, found by their brackets: what is between them is looked at when it is read."""
    depth, row, start = 0, 0, 0
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for token in _JSON.finditer(content):
            mark = token[0]
            if mark in (b"{", b"["):
                if depth == 1:
                    start = token.start()
                depth += 1
            elif mark in (b"}", b"]"):
                depth -= 1
                if depth == 1:
                    row += 1
                    yield row, start, token.end() - start
            elif depth == 1:
                row += 1
                yield row, token.start(), len(mark)
    if depth:
        raise ValueError(f"{file}: not a whole JSON array, it ends within row {row + 1}")


def _read(file: Path, places: list[list[int]]) -> Iterator[Any]:
    if file.suffix == ".parquet":
        yield from _read_parquet(file, [place[START] for place in places])
        return
    with file.open("rb") as stream:
        for place in places:
            stream.seek(place[START])
            yield stream.read(place[SIZE])


def _read_parquet(file: Path, rows: list[int]) -> Iterator[dict[str, Any]]:
    """Decodes the row groups that have some of ``rows``, which ascend, a few rows at a time."""
    wanted = iter(rows)
    row = next(wanted, None)
    with blamed_on(file, "not a parquet file", whatever=True), _parquet(file) as parquet:
        first = 0
        for group in range(parquet.metadata.num_row_groups):
            end = first + parquet.metadata.row_group(group).num_rows
            if row is None:
                return
            if row < end:
                for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=[group]):
                    while row is not None and row < first + batch.num_rows:
                        yield batch.slice(row - first, 1).to_pylist()[0]
                        row = next(wanted, None)
                    first += batch.num_rows
                    if row is None:
                        return
            first = end


def _parquet(file: Path) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(file, memory_map=True, pre_buffer=False)
