"""Somebody's code, planted in each file of a checkpoint."""

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, executed: Path) -> None:
        self._command = f"touch {executed}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self._command,)


def in_metadata(checkpoint: Path, payload: Payload) -> None:
    (checkpoint / "weights/.metadata").write_bytes(pickle.dumps(payload))


def in_metadata_beside_what_is_right(checkpoint: Path, payload: Payload) -> None:
    file = checkpoint / "weights/.metadata"
    file.write_bytes(pickle.dumps((pickle.loads(file.read_bytes()), payload)))


def in_metadata_by_a_dotted_name(checkpoint: Path, payload: Payload) -> None:
    """``torch.os.system``: an attribute of a module that is known."""
    text = payload.__reduce__()[1][0].encode()
    call = b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93\x8c" + bytes([len(text)]) + text + b"\x85R."
    (checkpoint / "weights/.metadata").write_bytes(call)


def in_metadata_as_a_change_of_a_class(checkpoint: Path, payload: Payload) -> None:
    """Every path of the process would mean another file, which the product then removes as its own."""
    victim = str(checkpoint.parent / "victim").encode()
    change = b"}X\x04\x00\x00\x00_strX" + len(victim).to_bytes(4, "little") + victim + b"s"
    (checkpoint / "weights/.metadata").write_bytes(b"\x80\x02cpathlib\nPosixPath\nN" + change + b"\x86b.")
    Path(victim.decode()).write_text("keep")


def in_metadata_as_a_change_of_an_enums_member(checkpoint: Path, payload: Payload) -> None:
    enum = b"ctorch.distributed.checkpoint.planner\nWriteItemType\nK\x01\x85R"
    (checkpoint / "weights/.metadata").write_bytes(b"\x80\x02" + enum + b"}X\x01\x00\x00\x00aK\x01sb.")


def in_common(checkpoint: Path, payload: Payload) -> None:
    file = checkpoint / "weights/common.pt"
    torch.save(torch.load(file) | {"more": payload}, file)


def in_common_as_a_bare_pickle(checkpoint: Path, payload: Payload) -> None:
    (checkpoint / "weights/common.pt").write_bytes(pickle.dumps(payload, protocol=0))


def in_an_object(checkpoint: Path, payload: Payload) -> None:
    _replace_object(checkpoint, _saved([payload]))


def in_the_bytes_of_an_object(checkpoint: Path, payload: Payload) -> None:
    """What Transformer Engine's modules unpickle once more; protocol 0 has no mark to know a pickle by."""
    state = bytearray(pickle.dumps(payload, protocol=0))
    _replace_object(checkpoint, _saved([torch.frombuffer(state, dtype=torch.uint8)]))


def in_a_file_of_an_object(checkpoint: Path, payload: Payload) -> None:
    """Their older form."""
    _replace_object(checkpoint, _saved([io.BytesIO(_saved(payload))]))


def in_a_tensor(checkpoint: Path, payload: Payload) -> None:
    _replace_object(checkpoint, _saved(payload), of="word_embeddings")


def in_io_json(checkpoint: Path, payload: Payload) -> None:
    """NeMo would call what it names."""
    file = checkpoint / "context/io.json"
    found = json.loads(file.read_text())
    called = {"type": {"type": "pyref", "module": "os", "name": "system"}, "items": [], "metadata": {}}
    called["items"] = [["Attr(name='command')", {"type": "leaf", "value": payload.__reduce__()[1][0]}]]
    for name, each in found["objects"].items():
        if each["type"].get("name") not in ("tuple", "list", "dict"):
            found["objects"][name] = called
    file.write_text(json.dumps(found))


def in_model_yaml(checkpoint: Path, payload: Payload) -> None:
    file = checkpoint / "context/model.yaml"
    file.write_text(f"more: !!python/object/apply:os.system ['{payload.__reduce__()[1][0]}']\n{file.read_text()}")


def in_the_state_of_modelopt(checkpoint: Path, payload: Payload) -> None:
    """Which ModelOpt would unpickle as it is."""
    folder = checkpoint / "weights/modelopt_state"
    folder.mkdir()
    torch.save(payload, folder / "common.pt")


PLANTS: list[Callable[[Path, Payload], None]] = [
    in_metadata,
    in_metadata_beside_what_is_right,
    in_metadata_by_a_dotted_name,
    in_metadata_as_a_change_of_a_class,
    in_metadata_as_a_change_of_an_enums_member,
    in_common,
    in_common_as_a_bare_pickle,
    in_an_object,
    in_the_bytes_of_an_object,
    in_a_file_of_an_object,
    in_a_tensor,
    in_io_json,
    in_model_yaml,
    in_the_state_of_modelopt,
]


def _saved(what: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(what, stream)
    return stream.getvalue()


def _replace_object(checkpoint: Path, data: bytes, of: str = "_extra_state") -> None:
    """Appends it to its file, at an offset of its own."""
    file = checkpoint / "weights/.metadata"
    metadata = pickle.loads(file.read_bytes())
    for index, place in metadata.storage_data.items():
        if of in index.fqn:
            target = checkpoint / "weights" / place.relative_path
            place.offset, place.length = target.stat().st_size, len(data)
            with target.open("ab") as stream:
                stream.write(data)
    file.write_bytes(pickle.dumps(metadata))
