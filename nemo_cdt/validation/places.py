"""What a run reads, what it writes, and that the two are apart: nothing that is there may be lost."""

from pathlib import Path

from nemo_cdt.checkpoint.exported import ExportError, require_replaceable
from nemo_cdt.config import Config
from nemo_cdt.utils.atomic_write import real
from nemo_cdt.validation.rules import require

OURS = {
    *("checkpoints", "init", "tokenizer", "tensorboard", "wandb", "mlflow", "profile", "baseline", "index", "slurm"),
    *(
        "config.yaml",
        "versions.json",
        "job.json",
        "data.json",
        "loggers.yaml",
        "metrics.jsonl",
        "sample.json",
        "study.json",
        "report.html",
    ),
    *("key_tokens.npz", "ft_state.json", "lightning_logs.txt", "cmd-args.log", "git-info.log", "nemo_error_log.txt"),
}
"""What a run, its launcher and NeMo's logger write in OUTPUT; names that begin with a dot or nemo_log_ are theirs too.
``hf`` is none of them, as ``export.hf`` may name it."""


def inputs(config: Config) -> dict[str, str]:
    """The files and folders that a run reads, by the keys that name them."""
    tokenizer = config.model.tokenizer
    named = {
        "data.path": config.data.path,
        "data.validation_path": config.data.validation_path,
        "init.hf": config.init.hf,
        "init.nemo": config.init.nemo,
        "model.tokenizer": None if tokenizer == "byte" else tokenizer,
        "longppl.evaluator": config.longppl.evaluator,
    }
    return {key: path for key, path in named.items() if path is not None}


def plain(path: Path) -> Path:
    """As it was named, but without ``..``: what that leads to is not to be seen before all before it is there."""
    return real(path) if ".." in path.parts else path


def require_plain(output: Path) -> None:
    """Raise ValueError for an OUTPUT such as ``new/../mine`` while ``new`` is not there.

    Nothing is by that name yet, so that whatever ``mine`` holds would look free, until the run makes ``new``.
    """
    left = (parent for parent in output.parents if output.parts[len(parent.parts)] == "..")
    missing = next((folder for folder in left if not folder.exists()), None)
    require(
        missing is None,
        f"output={output} goes through {missing}, which is not there: set it to {real(output)}",
    )


def check_apart(config: Config, earlier: Config | None) -> None:
    """Raise ValueError where OUTPUT is, holds or lies in what the run reads.

    A run that is resumed may read what ``earlier`` did, its earlier attempt.
    """
    output = Path(config.output)
    require_plain(output)
    before = inputs(earlier) if earlier else {}
    for key, path in inputs(config).items():
        if before.get(key) != path and (how := _together(output, Path(path))):
            raise ValueError(f"output={output} {how} {key}={path}: set output to a folder of the run's own")


def check_unused(config: Config) -> None:
    """Raise ValueError where a run would write over, or take for its own, what is in OUTPUT and of no run.

    For whoever starts one: benchmarks train one after another into a folder of their own, and keep no config.yaml.
    """
    output = Path(config.output)
    if not (output / "config.yaml").exists() and output.is_dir():
        there = sorted(path.name for path in output.iterdir() if path.name in OURS)
        require(
            not there,
            f"output={output} has {', '.join(there)}, but no config.yaml that says of which run, which would write "
            "there too: set another output",
        )


def check_export(config: Config) -> None:
    """Raise ValueError where the export would lie in what the run reads or keeps, or replace what it did not make."""
    if config.export.hf is None:
        return
    output, folder = Path(config.output), Path(config.export.hf)
    for key, path in inputs(config).items():
        how = _together(folder, Path(path))
        require(how is None, f"export.hf={folder} {how} {key}={path}: set another folder")
    how = _together(folder, output)
    require(
        how in (None, "lies in"),
        f"export.hf={folder} {how} output={output}: set it to {output / 'hf'}, or to a folder outside",
    )
    if how == "lies in":
        name = real(folder).relative_to(real(output)).parts[0]
        require(
            name not in OURS and not name.startswith((".", "nemo_log_")),
            f"export.hf={folder} is where the run keeps its {name}: set it to {output / 'hf'}, or to a folder outside",
        )
    try:
        require_replaceable(plain(folder), output)  # of OUTPUT/../hf nothing is to be seen before OUTPUT is there
    except ExportError as error:
        raise ValueError(f"export.hf={error}: set another folder, or move it away") from error


def _together(ours: Path, theirs: Path) -> str | None:
    """How two places overlap, in words, links followed."""
    one, other = real(ours), real(theirs)
    if one == other:
        return "is"
    if one in other.parents:
        return "holds"
    return "lies in" if other in one.parents else None
