"""``versions.json``: with what a run was made."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from nemo_cdt.utils.atomic_write import atomic_write

PACKAGES = (
    "nemo-cdt",
    "nemo-toolkit",
    "megatron-bridge",
    "megatron-core",
    "torch",
    "transformer-engine",
    "flash-attn",
    "transformers",
    "lightning",
)


def write_versions(path: Path) -> None:
    atomic_write(path, json.dumps(versions(), indent=1))


def versions() -> dict[str, str]:
    """What is installed, and the device."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    on_gpu = torch.cuda.is_available()
    return found | {"device": torch.cuda.get_device_name() if on_gpu else platform.machine()}
