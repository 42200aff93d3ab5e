"""What is installed, what does not fit together, and what to do about it. Imports nothing that it judges."""

import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from packaging.version import Version

from nemo_cdt.config import Framework

INSTALL = "make setup in a checkout, or pip install 'nemo-cdt[nemo]'"
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    status: Literal["ok", "warn", "fail"]
    line: str
    remedy: str = ""


def doctor() -> int:
    """Print every finding with its remedy; the exit code, 1 where a run would fail."""
    findings = [check() for check in CHECKS]
    for finding in findings:
        print(f"{finding.status:<5} {finding.line}")
        if finding.remedy:
            print(f"      -> {finding.remedy}")
    return int(any(finding.status == "fail" for finding in findings))


def training_blockers(framework: Framework = Framework.nemo) -> list[str]:
    """What a run must not start with, a line each."""
    findings = [check() for check in ((nemo_and_megatron, apex) if framework is Framework.nemo else (bridge, apex))]
    return [f"{finding.line}: {finding.remedy}" for finding in findings if finding.status == "fail"]


def installed(package: str) -> Version | None:
    """The version of a distribution, or None. Never imports it."""
    try:
        return Version(metadata.version(package))
    except metadata.PackageNotFoundError:
        return None


def python() -> Finding:
    line = f"Python {platform.python_version()}"
    if sys.version_info >= (3, 13):
        return Finding("warn", f"{line}: the lock holds for 3.10 to 3.12", "make setup PYTHON=python3.12")
    return Finding("ok", line)


def nemo_and_megatron() -> Finding:
    nemo, megatron = installed("nemo-toolkit"), installed("megatron-core")
    remedy = "pip install --no-deps nemo-toolkit==2.7.3 megatron-core==0.15.3"
    line = f"nemo-toolkit {nemo}, megatron-core {megatron}"
    if nemo is None or megatron is None:
        return Finding("fail", f"{line}: both are needed", INSTALL)
    if nemo >= Version("2.8"):
        return Finding("fail", f"{line}: NeMo 2.8 has no nemo.collections.llm", remedy)
    if megatron >= Version("0.16.dev0"):
        broken = "builds no optimizer and saves no checkpoint (NVIDIA-NeMo/Speech#15458)"
        return Finding("fail", f"{line}: with it NeMo 2.7 {broken}", remedy)
    if nemo.release[:2] != (2, 7) or megatron.release[:2] != (0, 15):
        return Finding("warn", f"{line}: untested together", remedy)
    return Finding("ok", line)


def bridge() -> Finding:
    found, megatron = installed("megatron-bridge"), installed("megatron-core")
    line = f"megatron-bridge {found}, megatron-core {megatron}"
    if found is None:
        return Finding("fail", f"{line}: framework=bridge needs it", "make setup FRAMEWORK=bridge")
    if found.release[:2] != (0, 6) or megatron is None or megatron.release[:2] != (0, 19):
        remedy = "pip install --no-deps megatron-bridge==0.6.2 megatron-core==0.19.2"
        return Finding("warn", f"{line}: untested together", remedy)
    return Finding("ok", line)


def modelopt() -> Finding:
    found = installed("nvidia-modelopt")
    if found is None:
        return Finding(
            "fail", "no nvidia-modelopt: NeMo hides half of nemo.collections.llm", "pip install nvidia-modelopt==0.37.0"
        )
    return Finding("ok", f"nvidia-modelopt {found}")


def nemo_run() -> Finding:
    found, lepton = installed("nemo-run"), installed("leptonai")
    line = f"nemo-run {found}, leptonai {lepton}"
    if found is None or lepton is None:
        return Finding("fail", f"{line}: several processes cannot be started", INSTALL)
    if lepton >= Version("0.28"):
        return Finding("fail", f"{line}: nemo-run cannot be imported with it", "pip install 'leptonai<0.28'")
    return Finding("ok", line)


def numpy_and_pyarrow() -> Finding:
    numpy, pyarrow = installed("numpy"), installed("pyarrow")
    line = f"numpy {numpy}, pyarrow {pyarrow}"
    if numpy is None:
        return Finding("fail", "no numpy", INSTALL)
    if numpy < Version("2") and pyarrow is not None and pyarrow >= Version("22"):
        return Finding("fail", f"{line}: pyarrow 22 needs numpy 2", "pip install 'pyarrow<22'")
    if numpy >= Version("2"):
        return Finding("warn", f"{line}: megatron-core 0.15 asks for numpy 1", "pip install 'numpy<2' 'pyarrow<22'")
    return Finding("ok", line)


def psutil() -> Finding:
    found = installed("psutil")
    if found is None:
        return Finding("fail", "no psutil: saving a checkpoint hangs", "pip install psutil")
    return Finding("ok", f"psutil {found}")


def resiliency() -> Finding:
    found, glibc = installed("nvidia-resiliency-ext"), platform.libc_ver()[1]
    remedy = "pip install nvidia-resiliency-ext==0.4.1"
    if found is None:
        return Finding("fail", "no nvidia-resiliency-ext: NeMo saves no checkpoint", remedy)
    if found >= Version("0.5") and glibc and Version(glibc) < Version("2.39"):
        return Finding("fail", f"nvidia-resiliency-ext {found} needs glibc 2.39, here is {glibc}", remedy)
    return Finding("ok", f"nvidia-resiliency-ext {found}")


def apex() -> Finding:
    """NVIDIA's is source only; the one on PyPI is a web toolkit of 2013, which NeMo takes for NVIDIA's."""
    spec = util.find_spec("apex")
    if spec is None:
        return Finding("ok", "no apex: Megatron uses torch instead")
    if not any(Path(folder, "normalization").is_dir() for folder in spec.submodule_search_locations or []):
        return Finding("fail", f"apex {installed('apex')} is not NVIDIA's but PyPI's web toolkit", "pip uninstall apex")
    return Finding("ok", "NVIDIA apex")


def transformer_engine() -> Finding:
    return _kernels("transformer-engine", "Megatron uses torch's layers, slower and without FP8")


def flash_attention() -> Finding:
    return _kernels("flash-attn", "attention falls back to cuDNN's or torch's")


def _kernels(package: str, without: str) -> Finding:
    found = installed(package)
    if found is not None:
        return Finding("ok", f"{package} {found}")
    if _gpu():
        return Finding("warn", f"no {package}: {without}", "run in the container nvcr.io/nvidia/nemo:25.11")
    return Finding("ok", f"no {package}: not needed on a CPU")


def torch() -> Finding:
    found = installed("torch")
    if found is None:
        return Finding("fail", "no torch", INSTALL)
    cuda = _cuda_of_torch()
    line = f"torch {found}, {f'CUDA {cuda}' if cuda else 'CPU build'}; {'a GPU' if _gpu() else 'no GPU'} is visible"
    if _gpu() and cuda is None:
        return Finding("warn", f"{line}: runs use the CPU", f"pip install torch=={found.base_version} of a CUDA build")
    return Finding("ok", line)


def _cuda_of_torch() -> str | None:
    """The CUDA version torch was built for, read from its version.py: importing torch takes seconds."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    found = re.search(r"^cuda.*= '([\d.]+)'", Path(spec.origin).with_name("version.py").read_text(), re.MULTILINE)
    return found.group(1) if found else None


def _gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    line = f"{free / GIB:.0f} GiB free in {Path.cwd()}"
    if free < 2 * GIB:
        return Finding(
            "warn", f"{line}: the demo needs 1, a checkpoint of an 8B model 120", "set output=DIR on another disk"
        )
    return Finding("ok", line)


CHECKS: list[Callable[[], Finding]] = [
    python,
    torch,
    nemo_and_megatron,
    modelopt,
    nemo_run,
    numpy_and_pyarrow,
    psutil,
    resiliency,
    apex,
    transformer_engine,
    flash_attention,
    disk,
]
