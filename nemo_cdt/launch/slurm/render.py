"""A run as a job of Slurm: a script for ``sbatch``, or NeMo-Run's executor, from the same configuration.

One task a node, which is nemo_cdt/launch/node: it starts torchrun there. Slurm sends SIGTERM ``launcher.grace`` seconds
before a job's time is over, and when it preempts: the run saves and exits with 143, and the job is requeued, as it is
after a failure; not after a user's mistake, exit code 2, which ends a chain too.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from nemo_cdt.config import Config
from nemo_cdt.config.launcher import PLACEHOLDER, Submit
from nemo_cdt.launch.slurm import nemo_run, parts, sbatch
from nemo_cdt.validation import missing_keys


def render(config: Config) -> str:
    """The script, the commands that submit it, and the configuration that it reads. What is missing is marked."""
    marked: dict[str, Any] = {key: placeholder(key) for key in missing_keys(config.launcher)}
    config = replace(config, launcher=replace(config.launcher, **marked))
    if config.launcher.submit is Submit.sbatch:
        ids = [f"job{index + 1}" for index in range(config.launcher.chain)]
        commands = [sbatch.submission(config, [f"${earlier}" for earlier in ids[:index]]) for index in range(len(ids))]
        submissions = [f"{name}=$({command})" for name, command in zip(ids, commands, strict=True)]
        text = sbatch.script(config) + _commented(submissions)
    else:
        text, commands = nemo_run.dryrun(config)
        text += _commented(commands)
    submitted = replace(config, launcher=replace(config.launcher, dryrun=False))
    as_yaml = OmegaConf.to_yaml(OmegaConf.structured(parts.as_it_runs(submitted)))
    return text + _commented([f"{parts.config_file(config)}:", *as_yaml.splitlines()])


def placeholder(key: str) -> str:
    """What a script that is only shown has in place of ``launcher.KEY``. Slurm knows no such name, and refuses it."""
    return f"{PLACEHOLDER}{key.upper()}"


def _commented(lines: Sequence[str]) -> str:
    return "\n" + "".join(f"# {line}".rstrip() + "\n" for line in lines)
