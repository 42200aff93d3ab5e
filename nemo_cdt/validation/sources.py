"""What a run begins from: data, weights, tokenizer."""

import os
from functools import partial
from itertools import islice
from pathlib import Path

from nemo_cdt.checkpoint.pretrained import INDEX, weight_files
from nemo_cdt.config import Config, Data, DataName, Lora, LoraTarget, walk
from nemo_cdt.config.fitting import require_fitting
from nemo_cdt.config.huggingface import read_model
from nemo_cdt.objectives import objectives_of
from nemo_cdt.prepared import TRAIN, VALIDATION, fingerprint, read_summary
from nemo_cdt.utils.reading import read_lines
from nemo_cdt.validation.layout import check_vocabulary
from nemo_cdt.validation.outputs import check_output
from nemo_cdt.validation.rules import nearest, refuse, require, require_all


def require_sources(config: Config) -> None:
    """Raise ValueError where a run lacks what it begins from, or room for what it makes; part of :func:`validate`.

    The files of a run that a launcher starts elsewhere are checked there, by :func:`check_files`.
    """
    here = () if config.launcher.elsewhere else (check_files, check_output)
    require_all(*(partial(check, config) for check in (_check_lora, _check_data, _check_study, *here)))


def check_files(config: Config) -> None:
    """Raise ValueError for a file of ``data``, ``init`` or ``model`` that is not as it must be."""
    prepared = (_check_prepared,) if config.data.name.is_prepared else (_check_held_out,)
    require_all(*(partial(check, config) for check in (_check_data_files, _check_sources, *prepared)))


def _check_data(config: Config) -> None:
    data, interval = config.data, config.trainer.val_interval
    refuse([*data.mistakes(asked=data.name is DataName.multihop)])
    if data.name is not DataName.multihop:
        require(
            data.path is not None,
            f"data.path=null with data={data.name}, which has no rows of its own: "
            f"set data.path={'DIR' if data.name.is_prepared else 'FILE'}",
        )
    if data.name.is_prepared:
        _check_settings_of_prepared(data)
    require(
        interval == 0 or data.validation_samples > 0 or data.validation_path is not None,
        f"data.validation_samples=0 with trainer.val_interval={interval}: set trainer.val_interval=0",
    )
    whole = config.trainer.global_batch_size
    require(
        interval == 0 or data.validation_samples % whole == 0,
        f"data.validation_samples={data.validation_samples} must be a multiple of trainer.global_batch_size={whole}, "
        f"or the rest is never validated on: set data.validation_samples={nearest(data.validation_samples, whole)}",
    )


def _check_study(config: Config) -> None:
    """It asks Hugging Face folders, in the process that trained, questions whose facts are known."""
    asked = config.study.samples
    needs = {
        "data=multihop": config.data.name is DataName.multihop,
        "init.hf=DIR": config.init.hf is not None,
        "export.hf=DIR": config.export.hf is not None,
        "launcher=local": not config.launcher.elsewhere,
    }
    missing = [key for key, there in needs.items() if not there]
    require(not asked or not missing, f"study.samples={asked} needs {', '.join(missing)}: set it, or study.samples=0")
    most = config.data.validation_samples
    require(
        asked <= most,
        f"study.samples={asked} with data.validation_samples={most}, which they are of: set {most} or fewer",
    )


def _check_settings_of_prepared(data: Data) -> None:
    require(
        data.validation_path is None,
        f"data.validation_path={data.validation_path} with data={data.name}, whose folder has its own: set it to null",
    )
    require(not data.truncate, f"data.truncate=true with data={data.name}: prepare it with a lower max_tokens")
    if data.name is DataName.pretrain:
        for key, value, only in (("pack", data.pack, False), ("shuffle", data.shuffle, True)):
            require(
                value is only,
                f"data.{key}={str(value).lower()} with data=pretrain, whose rows are one document each, shuffled by "
                f"Megatron: set data.{key}={str(only).lower()}, or data=prepared",
            )


def _check_data_files(config: Config) -> None:
    data = config.data
    for name, path in (("data.path", data.path), ("data.validation_path", data.validation_path)):
        if path is not None:
            _check_readable(name, Path(path), folder=data.name is DataName.multihop or data.name.is_prepared)


def _check_held_out(config: Config) -> None:
    """That a file of rows has more than are held out; it is read no further than that."""
    data = config.data
    held_out = data.validation_samples if config.trainer.val_interval else 0
    if data.name is DataName.multihop or data.path is None or data.validation_path or not Path(data.path).is_file():
        return
    rows = sum(1 for _ in islice((1 for _, line in read_lines(Path(data.path)) if not line.isspace()), held_out + 1))
    require(
        rows > held_out or rows == 0,  # a file without rows is said by whoever reads it
        f"data.validation_samples={held_out} leaves nothing of the {rows} rows of {data.path} to train on: set fewer, "
        "trainer.val_interval=0, or data.validation_path",
    )


def _check_prepared(config: Config) -> None:
    data, folder = config.data, config.data.path
    try:
        summary = read_summary(Path(folder or ""))
    except ValueError as error:
        raise ValueError(f"data.path={error}") from error
    tokenizer = summary["tokenizer"]
    require(
        fingerprint(config.tokenizer) == tokenizer["fingerprint"],
        f"model.tokenizer={config.tokenizer} is not the tokenizer that data.path={folder} was prepared with, "
        f"{tokenizer['path']}: set model.tokenizer to that, or prepare it again",
    )
    train, held_out = summary[TRAIN], summary[VALIDATION]
    limit = data.document_length or data.seq_length
    require(
        not any(one.prompted for one in objectives_of(config)) or train["unprompted"] == 0,
        f"objective=sft trains on answers alone, but {train['unprompted']} documents of data.path={folder} are "
        "labelled throughout: set objective=ce",
    )
    if data.name is DataName.pretrain:
        require(
            train["shortest"] == train["longest"] == data.seq_length,
            f"data.seq_length={data.seq_length} with data=pretrain, but the documents of data.path={folder} have "
            f"{train['shortest']} to {train['longest']} tokens: set data.seq_length to that, or data=prepared",
        )
    longest = max(train["longest"], held_out["longest"]) - 1
    require(
        longest <= limit,
        f"data.{'document_length' if data.document_length else 'seq_length'}={limit} is shorter than the {longest} "
        f"positions of the longest document of data.path={folder}: set it to {longest} or more",
    )
    require(
        config.trainer.val_interval == 0 or data.validation_samples <= held_out["documents"],
        f"data.validation_samples={data.validation_samples}, but data.path={folder} holds out "
        f"{held_out['documents']} documents: set data.validation_samples to that or less, or trainer.val_interval=0",
    )


def _check_readable(name: str, path: Path, folder: bool) -> None:
    """A file that is there, is readable and holds something; or, where ``folder``, a folder."""
    require(path.exists(), f"{name}={path} does not exist")
    require(folder or path.is_file(), f"{name}={path} is no file: set {name}=FILE")
    require(os.access(path, os.R_OK), f"{name}={path} is not readable")
    require(not path.is_file() or path.stat().st_size > 0, f"{name}={path} is empty")


def _check_sources(config: Config) -> None:
    init, tokenizer = config.init, config.tokenizer
    require(not (init.hf and init.nemo), f"init.hf={init.hf} and init.nemo={init.nemo}: set one of them to null")
    for name, folder in (("init.hf", init.hf), ("init.nemo", init.nemo)):
        if folder is not None:
            require(Path(folder).is_dir(), f"{name}={folder} is no folder")
    if init.hf is not None:
        _check_hf_model(config, Path(init.hf))
    require(
        config.longppl.evaluator is None or Path(config.longppl.evaluator, "config.json").is_file(),
        f"longppl.evaluator={config.longppl.evaluator} is no Hugging Face folder: it has no config.json",
    )
    require(
        init.nemo is None or not Path(init.nemo, "weights/adapter_metadata.json").exists(),
        f"init.nemo={init.nemo} holds adapters alone: `nemo-cdt convert {init.nemo} DIR` merges them into what they "
        "adapt, then set init.hf=DIR",
    )
    start = f"init.hf={init.hf}" if init.hf else f"init.nemo={init.nemo}"
    require(
        not (init.hf or init.nemo) or config.model.tokenizer is not None or tokenizer != "byte",
        f"{start} holds weights without a tokenizer: set model.tokenizer to their tokenizer's folder, or to byte",
    )
    if tokenizer != "byte":
        require(
            Path(tokenizer).is_dir(),
            f"model.tokenizer={tokenizer} is no folder: set it to a tokenizer's folder, or to byte",
        )


def _check_hf_model(config: Config, folder: Path) -> None:
    try:
        found = read_model(folder)
        if (folder / INDEX).exists():
            weight_files(folder)
    except ValueError as error:
        raise ValueError(f"init.hf={folder} is no Hugging Face model: {error}") from error
    require_fitting(config.model, found, f"init.hf={folder}")
    check_vocabulary(config, found.vocab_size or 0, f"init.hf={folder}")


def _check_lora(config: Config) -> None:
    lora, init, parallel = config.lora, config.init, config.parallel
    if lora.rank == 0:
        default = dict(walk(Lora()))
        unused = [f"lora.{name}={value}" for name, value in walk(lora) if value != default[name]]
        require(not unused, f"{' '.join(unused)} has no effect with lora.rank=0: set lora.rank, or lora=none")
        return
    require(
        bool(init.hf or init.nemo),
        f"lora.rank={lora.rank} adapts weights that are there, but init.hf=null and init.nemo=null: "
        "set init.hf=DIR, or lora=none",
    )
    require(
        lora.rank % parallel.tensor == 0,
        f"lora.rank={lora.rank} must be a multiple of parallel.tensor={parallel.tensor}: "
        f"set lora.rank={nearest(lora.rank, parallel.tensor)}",
    )
    require(
        parallel.virtual_pipeline is None,
        f"parallel.virtual_pipeline={parallel.virtual_pipeline} with lora.rank={lora.rank}, of whose adapters NeMo "
        "would save none: set parallel.virtual_pipeline=null",
    )
    require(lora.dropout < 1, f"lora.dropout={lora.dropout}: set it below 1")
    targets = [str(target) for target in lora.targets]
    require(
        bool(targets) and len(targets) == len(set(targets)),
        f"lora.targets=[{','.join(targets)}]: set it to some of {','.join(LoraTarget)}, each once",
    )
