"""Which files of a Hugging Face folder hold its weights."""

from pathlib import Path

from nemo_cdt.utils.reading import FileError, blamed_on, entry, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a model's weights.

    Raises:
        ValueError: where there are none, or the index names what is no file of the folder's own.
    """
    if (folder / INDEX).exists():
        return _shards(folder / INDEX)
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    with blamed_on(folder):
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth"})
    if pickled:
        raise ValueError(f"{folder} has pickled weights only ({pickled[0]}); save it as safetensors")
    raise ValueError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}")


def _shards(index: Path) -> list[Path]:
    names = entry(read_json(index), "weight_map", dict, index).values()
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
            raise FileError(f"{index}: a shard is a safetensors file of the same folder, not {str(name)[:200]!r}")
    if not names:
        raise FileError(f"{index}: its weight_map is empty")
    files = [index.parent / name for name in sorted({*names})]
    for file in files:
        with blamed_on(index):
            if not file.is_file():
                raise ValueError(f"it names {file.name[:200]}, which is not there")
    return files
