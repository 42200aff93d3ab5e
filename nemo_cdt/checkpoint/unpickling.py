"""A checkpoint's pickles, read by unpicklers that know the few classes a checkpoint needs, so that none of them runs
anything.

Of a folder in Megatron's format, ``weights/``, torch and Megatron unpickle these:

    .metadata    with plain :mod:`pickle`, whatever it names
    *.distcp     each object at an offset that .metadata tells, with ``torch.load(weights_only=False)``; each tensor
                 with ``weights_only=True``
    common.pt    with ``torch.load``, whose protection the environment can switch off
    in objects   Transformer Engine's state of FP8, bytes that its modules unpickle once more

:func:`check` reads all of them before any loader does. :func:`weights_only` holds ``torch.load`` to its protection
while a loader runs.
"""

import io
import os
import pickle
import re
import struct
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata

from nemo_cdt.utils.reading import FileError, blamed_on, read_bytes, read_json
from nemo_cdt.utils.user_errors import first_line

METADATA, COMMON = ".metadata", "common.pt"
FORMAT = {"sharded_backend": "torch_dist", "common_backend": "torch"}
"""Of metadata.json: another backend would bring another reader."""

OF_METADATA = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
        *("TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.planner": {"SavePlan", "WriteItem", "WriteItemType", "TensorWriteData"},
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreMetadata", "MCoreSavePlan"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"}
    | {str(each).removeprefix("torch.") for each in vars(torch).values() if type(each) is torch.dtype},
    "collections": {"OrderedDict", "defaultdict"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},  # Python 3.13's
}
OF_FP8 = {
    "torch._utils": {"_rebuild_tensor_v2"},
    "torch.storage": {"UntypedStorage", "TypedStorage"},
    "torch": OF_METADATA["torch"] | {"FloatStorage", "ByteStorage", "HalfStorage", "BFloat16Storage", "LongStorage"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict", "deque"},
    "transformer_engine.common.recipe": {
        *("Recipe", "Format", "_FormatHelper", "DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling"),
        *("MXFP8BlockScaling", "NVFP4BlockScaling", "MMParams", "QParams", "_OverrideLinearPrecision"),
    },
}
"""What Transformer Engine's modules pickle of themselves: tensors, a recipe, numbers."""

Known = Mapping[str, set[str]]


BUILT = {
    *("Metadata", "MCoreMetadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata"),
    *("ChunkStorageMetadata", "TensorProperties", "StorageMeta", "_StorageInfo", "_StoragePrefix", "SavePlan"),
    *("MCoreSavePlan", "WriteItem", "TensorWriteData"),
    *(name for name in OF_FP8["transformer_engine.common.recipe"] if not name.startswith(("Format", "_Format"))),
}
"""Classes whose instances a pickle gives their attributes. Never a class itself, a function or a member of an enum:
all of the process would see what was changed there."""
FILLED = (dict, list, set, OrderedDict, defaultdict, deque)
"""What a pickle puts items into."""


class Restricted(pickle._Unpickler):  # type: ignore[name-defined, misc]
    """Knows the names in ``known`` and nothing else, and changes nothing but what it has made.

    Names are compared whole: a pickle may ask for ``module "os.system"``, which plain find_class would look up as an
    attribute of what the module has imported. Python's own unpickler in Python, not the one in C: that one makes room
    for as many objects as the largest number that a pickle gives one, 64 GiB for five bytes.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]
    stack: list[Any]
    metastack: list[list[Any]]

    def __init__(self, file: Any, known: Known) -> None:
        super().__init__(file)
        self._known = known

    def _load_build(self) -> None:
        made = self.stack[-2]
        if isinstance(made, type) or type(made).__name__ not in BUILT:
            raise pickle.UnpicklingError(refusal(f"a change of {_called(made)}"))
        pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]

    def _filling(self, place: int) -> None:
        into = self.stack[place] if place < 0 else self.metastack[-1][-1]
        if type(into) not in FILLED:
            raise pickle.UnpicklingError(refusal(f"a change of {_called(into)}"))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member  # how Python 3.11 pickles a member of an enum
        if name not in self._known.get(module, ()):
            raise pickle.UnpicklingError(refusal(f"{module}.{name}"))
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to what is elsewhere")


def _guarded(operation: str, place: int) -> Callable[[Any], None]:
    """An operation that fills what lies at ``place`` of the stack; 0: below the mark."""
    right = getattr(pickle._Unpickler, operation)  # type: ignore[attr-defined]

    def load(unpickler: Any) -> None:
        unpickler._filling(place)
        right(unpickler)

    return load


Restricted.dispatch |= {
    pickle.BUILD[0]: Restricted._load_build,
    pickle.APPEND[0]: _guarded("load_append", -2),
    pickle.APPENDS[0]: _guarded("load_appends", 0),
    pickle.SETITEM[0]: _guarded("load_setitem", -3),
    pickle.SETITEMS[0]: _guarded("load_setitems", 0),
    pickle.ADDITEMS[0]: _guarded("load_additems", 0),
}


def _called(made: object) -> str:
    return getattr(made, "__qualname__", type(made).__qualname__)


class _Inert(Restricted):
    """The same, and makes nothing of what it knows: for state that is only looked through, of packages not here."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):  # a tensor in it, as torch pickles one alone
            return lambda data: torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        if name not in self._known.get(module, ()):
            raise pickle.UnpicklingError(refusal(f"{module}.{name}"))
        if module == "collections":
            return {"OrderedDict": OrderedDict, "deque": deque}[name]
        return type(name, (_Anything,), {})


class _Anything:
    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def refusal(name: str) -> str:
    return f"it asks for {name}, which no checkpoint needs: it may hold somebody's code, and was not read"


def _member(of: Any, name: str) -> Any:
    if not (isinstance(of, type) and issubclass(of, Enum)):
        raise pickle.UnpicklingError(refusal("builtins.getattr"))
    return of[name]


@contextmanager
def weights_only() -> Iterator[None]:
    """Whatever calls ``torch.load`` within it, and however: it reads tensors, plain values and what Megatron lists."""
    force, off = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (force, off)}
    os.environ[force] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _refusals() -> Iterator[None]:
    """An unpickler's refusals as a ValueError: torch's own text tells how to switch the protection off."""
    try:
        yield
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error)) or re.search(r"class (\S+) ", str(error))
        text = str(error) if str(error).startswith("it ") else refusal(named[1]) if named else "its pickle is damaged"
        raise ValueError(text) from error
    except (RuntimeError, EOFError, OSError, ImportError, AssertionError, struct.error, zipfile.BadZipFile) as error:
        raise ValueError(f"it is cut off or damaged: {first_line(error)[:160]}") from error


class Reader(dcp.FileSystemReader):
    """Torch's reader, for what only reads tensors: its ``.metadata`` comes through :func:`read_metadata`."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        metadata = read_metadata(Path(self.path))
        assert metadata.storage_meta is not None
        metadata.storage_meta.load_id = self.load_id
        return metadata


def read_metadata(weights: Path) -> Metadata:
    """``weights/.metadata``: what is where in the ``.distcp`` files.

    Raises:
        FileError: where it is damaged, names a class that it does not need, or tells what cannot be: a file elsewhere,
            a place beyond a file's end, a tensor that is larger than what was saved of it.
    """
    file = weights / METADATA
    data = read_bytes(file)
    with blamed_on(file), _refusals():
        found = Restricted(io.BytesIO(data), OF_METADATA).load()
        _require_metadata(found)
        sizes = {path.name: path.stat().st_size for path in weights.iterdir() if path.is_file()}
        saved: Counter[str] = Counter()
        for index, place in found.storage_data.items():
            _require_place(place, sizes)
            saved[index.fqn] += place.length
        for name, entry in found.state_dict_metadata.items():
            _require_size(name, entry, saved[name])
        if found.storage_meta is None:
            found.storage_meta = dcp.metadata.StorageMeta()
    return found


def _require_metadata(found: Any) -> None:
    if not isinstance(found, Metadata):
        raise ValueError(f"it holds no metadata, but a {type(found).__name__}")
    for table in (found.state_dict_metadata, found.storage_data):
        if not isinstance(table, dict):
            raise ValueError("it holds no tables of what was saved")


def _require_place(place: Any, sizes: Mapping[str, int]) -> None:
    name, start, length = place.relative_path, place.offset, place.length
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError(f"it names a file {str(name)[:100]!r}, and not one beside it")
    if name not in sizes:
        raise ValueError(f"{name}, of which it tells, is missing")
    if not (type(start) is type(length) is int and 0 <= start <= start + length <= sizes[name]):
        raise ValueError(f"{name} has {sizes[name]} bytes and ends early: {start} to {start + length!s} belong to it")
    if getattr(place, "transform_descriptors", None):
        raise ValueError(f"{name} is written by {place.transform_descriptors}, which is not known")


def _require_size(name: Any, entry: Any, saved: int) -> None:
    if not isinstance(name, str) or not isinstance(entry, (TensorStorageMetadata, BytesStorageMetadata)):
        raise ValueError(f"{str(name)[:100]} is neither a tensor nor an object")
    if isinstance(entry, TensorStorageMetadata):
        if not all(type(size) is int and size >= 0 for size in entry.size):
            raise ValueError(f"{name} has the shape {str(entry.size)[:100]}")
        if not isinstance(entry.properties.dtype, torch.dtype):
            raise ValueError(f"{name} has no dtype")
        if (needed := prod(entry.size) * entry.properties.dtype.itemsize) > saved:
            raise ValueError(f"{name} would have {needed:,} bytes, but {saved:,} were saved of it")


def check(checkpoint: Path, mine: Callable[[str], bool] = lambda _: True) -> None:
    """Raise ValueError, a line that names the file, where reading the checkpoint could run code, or a file is cut off.

    Args:
        checkpoint: a folder with ``weights/``.
        mine: of which ``.distcp`` files the objects are looked through; ranks share them.
    """
    weights = checkpoint / "weights"
    require_format(weights)
    metadata = read_metadata(weights)
    _check_common(weights / COMMON)
    for name, place in _objects(metadata):
        if mine(place.relative_path):
            _check_object(weights / place.relative_path, name, place.offset, place.length)


def require_format(weights: Path) -> None:
    """Raise ValueError unless Megatron reads the folder by its reader for torch's format, and by no other."""
    file = weights / "metadata.json"
    found = read_json(file)
    for key, value in FORMAT.items():
        if found.get(key) != value:
            raise FileError(f"{file}: its {key} is {str(found.get(key))[:100]!r}, but only {value!r} is read")
    if (weights / "modelopt_state").exists():
        raise FileError(
            f"{weights} is of a model that ModelOpt has changed (modelopt_state): export it unchanged first"
        )


def _objects(metadata: Metadata) -> Iterator[tuple[str, Any]]:
    """What is no tensor, and where it lies."""
    places = metadata.storage_data
    named = ((index.fqn, place) for index, place in places.items())
    yield from ((n, p) for n, p in named if not isinstance(metadata.state_dict_metadata.get(n), TensorStorageMetadata))


def _check_common(file: Path) -> None:
    data = read_bytes(file)
    with blamed_on(file):
        load_object(data)


def _check_object(file: Path, name: str, start: int, length: int) -> None:
    with blamed_on(file, f"its object {name}"):
        with file.open("rb") as stream:
            stream.seek(start)
            found = load_object(stream.read(length))
        if "_extra_state" in name:
            for state in _states(found):
                _check_state(state)


def load_object(data: bytes) -> Any:
    """One that ``torch.save`` wrote.

    Raises:
        ValueError: for one that is more than tensors, plain values and the classes that Megatron lists.
    """
    from megatron.core.safe_globals import SAFE_GLOBALS

    _require_stored(data)
    with _refusals(), weights_only(), torch.serialization.safe_globals([*SAFE_GLOBALS, io.BytesIO]):
        return torch.load(io.BytesIO(data), map_location="cpu")


def _require_stored(data: bytes) -> None:
    """Torch writes its archives uncompressed; compressed, a few bytes could stand for any amount of memory."""
    if data[:2] != b"PK":
        raise ValueError("it is no archive of torch's, or cut off")
    with _refusals(), zipfile.ZipFile(io.BytesIO(data)) as archive:
        if any(one.compress_type != zipfile.ZIP_STORED or one.file_size > len(data) for one in archive.infolist()):
            raise ValueError("its archive is compressed, as torch writes none")


def _states(found: Any) -> Iterator[bytes]:
    """Bytes in an object that a module may take for a pickle."""
    match found:
        case torch.Tensor() if found.dtype is torch.uint8 and found.numel():
            yield found.contiguous().numpy().tobytes()
        case io.BytesIO() if found.getbuffer().nbytes:
            yield found.getvalue()
        case dict():
            for value in found.values():
                yield from _states(value)
        case list() | tuple():
            for value in found:
                yield from _states(value)


def _check_state(state: bytes) -> None:
    """Of Transformer Engine's modules in FP8: nothing but tensors, a recipe and numbers."""
    if state[:2] == b"PK":  # its older form
        load_object(state)
    else:
        with _refusals():
            _Inert(io.BytesIO(state), OF_FP8).load()
