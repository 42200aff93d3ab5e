"""Before a run on a cluster starts, or starts again: is every node fit for it, and do the nodes see the same?

Facts and faults go through torchrun's store, so that a node whose network is broken is named too; only then do the
ranks reduce something together.
"""

import json
import shutil
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from nemo_cdt.config import Accelerator, Config, load, save
from nemo_cdt.config.launcher import Launcher
from nemo_cdt.config.resumption import earlier_attempt, require_same_run
from nemo_cdt.doctor import training_blockers
from nemo_cdt.frameworks import framework_of
from nemo_cdt.utils.user_errors import first_line
from nemo_cdt.validation import check_files, check_places, check_unused, logger_blockers, require_same_data
from nemo_cdt.versions import versions

TIMEOUT = timedelta(minutes=5)
FREE_GIB = 1
"""Of OUTPUT's disk: below it not even the tiny model's checkpoints are safe."""


def preflight(config: Config, env: Mapping[str, str]) -> distributed.Store:
    """Returns on every rank, or on none: rank 0 prints what is wrong where, a line each, and all exit with 2.

    On success OUTPUT/config.yaml holds ``config``. Keep what is returned until the end: where rank 0 hosts the store
    of the whole attempt, as under nvidia-resiliency-ext, training joins the same one.
    """
    rank, world, local = (int(env[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    rendezvous, *_ = next(distributed.rendezvous("env://", timeout=TIMEOUT))
    # Each attempt has a store of its own. Its number is none to go by: a node that came back counts from 0 again.
    store = distributed.PrefixStore("preflight", rendezvous)
    faults = _together(store, rank, world, "facts", _facts(config, rank, local), lambda found: _compare(config, found))
    if not faults:
        seen = _unseen(config, world)
        faults = _together(store, rank, world, "seen", seen, _who_sees_not)
    if not faults:
        faults = _together(store, rank, world, "reduced", _all_reduce(config, store, rank, world, local), _flat)
    if rank == 0:
        _tidy(config, world)
        for fault in faults:
            print(f"error: preflight: {fault}", file=sys.stderr, flush=True)
    if faults:
        raise SystemExit(2)
    return rendezvous


def _together(store: Any, rank: int, world: int, key: str, found: Any, judge: Any) -> list[str]:
    """What rank 0 makes of what every rank found; the same on every rank. Rank 0, which may host the store, is last."""
    store.set(f"{key}/{rank}", json.dumps(found))
    if rank > 0:
        store.wait([key], TIMEOUT * 2)
        faults = json.loads(store.get(key))
        store.set(f"{key}/read/{rank}", "")
        return faults
    everyone, missing = {}, []
    for other in range(world):
        try:
            everyone[other] = json.loads(store.get(f"{key}/{other}"))
        except RuntimeError:  # DistStoreError: it did not come in time
            missing.append(f"rank {other} did not answer within {TIMEOUT}")
    faults = missing or judge([*everyone.values()])
    store.set(key, json.dumps(faults))
    store.wait([f"{key}/read/{other}" for other in everyone if other > 0], TIMEOUT)
    return faults


def _facts(config: Config, rank: int, local: int) -> dict[str, Any]:
    """Of this rank; what is of a node is looked at by its first rank."""
    faults = _node_faults(config, rank) if local == 0 else []
    if config.trainer.accelerator is Accelerator.gpu and torch.cuda.device_count() < config.trainer.devices:
        faults.append(f"torch sees {torch.cuda.device_count()} of {config.trainer.devices} GPUs")
    try:
        same = versions() | {"driver": _driver(), "torch's CUDA": str(torch.version.cuda)}
    except RuntimeError as error:  # torch cannot reach the driver
        same, faults = {}, [*faults, first_line(error)]
    return {"node": socket.gethostname(), "rank": rank, "same": same, "faults": faults}


def _node_faults(config: Config, rank: int) -> list[str]:
    faults = [*training_blockers(framework_of(config)), *(logger_blockers(config) if rank == 0 else [])]  # rank 0 logs
    try:
        check_files(config)
    except ValueError as error:
        faults.append(str(error))
    output = Path(config.output)
    try:
        if rank == 0:
            _claim(config)
        _folder(config).mkdir(parents=True, exist_ok=True)
        Path(_folder(config), str(rank)).write_text(socket.gethostname())
        free = shutil.disk_usage(output).free >> 30
        if free < FREE_GIB:
            faults.append(f"output={output} has {free} GiB free")
    except ValueError as error:
        faults.append(str(error))
    except OSError as error:
        faults.append(f"output={output} is not writable: {error.strerror}")
    return faults


def _claim(config: Config) -> None:
    """OUTPUT is this run's from here on. Raises ValueError where it is another's."""
    file = Path(config.output, "config.yaml")
    if file.exists() and not config.resume and _bare(load(file)) != _bare(config):
        raise ValueError(f"output={config.output} already holds a run: set resume=true, or another output")
    earlier = earlier_attempt(config)
    if earlier is not None:
        require_same_run(config, earlier)
        require_same_data(config)
    check_places(config, earlier)
    check_unused(config)
    save(replace(config, resume=True), file)


def _bare(config: Config) -> Config:
    return replace(config, resume=False, launcher=Launcher())


def _driver() -> str:
    file = Path("/proc/driver/nvidia/version")
    return file.read_text().splitlines()[0] if file.exists() else "none"


def _compare(config: Config, found: list[dict[str, Any]]) -> list[str]:
    """The faults of each node, and where a rank differs from the first."""
    first, faults = found[0], []
    for facts in found:
        node = f"{facts['node']} (rank {facts['rank']})"
        faults += [f"{node}: {fault}" for fault in facts["faults"]]
        for what in sorted(first["same"].keys() | facts["same"].keys()):
            ours, theirs = facts["same"].get(what), first["same"].get(what)
            if ours != theirs and facts["same"]:
                faults.append(f"{node} has {what} {ours}, {first['node']} has {theirs}")
    return faults


def _folder(config: Config) -> Path:
    return Path(config.output, ".preflight")


def _tidy(config: Config, world: int) -> None:
    """Removes what the ranks wrote there, by name, and the folder where nothing else is in it."""
    with suppress(OSError):
        for rank in range(world):
            Path(_folder(config), str(rank)).unlink(missing_ok=True)
        _folder(config).rmdir()


def _unseen(config: Config, world: int) -> dict[str, Any]:
    """The nodes whose file in OUTPUT this one does not see: then it is not one folder."""
    firsts = range(0, world, config.trainer.devices)
    return {"node": socket.gethostname(), "unseen": [n for n in firsts if not Path(_folder(config), str(n)).exists()]}


def _who_sees_not(found: list[dict[str, Any]]) -> list[str]:
    blind = {one["node"]: one["unseen"] for one in found if one["unseen"]}
    return [
        f"{node} does not see in output what rank {', '.join(map(str, ranks))} wrote: set output to a shared folder"
        for node, ranks in blind.items()
    ]


def _flat(found: list[list[str]]) -> list[str]:
    return [fault for faults in found for fault in faults]


def _all_reduce(config: Config, store: Any, rank: int, world: int, local: int) -> list[str]:
    on_gpu = config.trainer.accelerator is not Accelerator.cpu and torch.cuda.is_available()
    node = f"{socket.gethostname()} (rank {rank})"
    try:
        device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
        if on_gpu:
            torch.cuda.set_device(device)
        backend = "nccl" if on_gpu else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
        total = torch.ones(1, device=device)
        distributed.all_reduce(total)
        return [] if total.item() == world else [f"{node}: an all-reduce of ones gave {total.item()}, not {world}"]
    except RuntimeError as error:
        return [f"{node}: all-reduce failed: {first_line(error)}"]
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
