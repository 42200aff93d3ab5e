"""One training run: from a validated configuration to what trains it, and its files in OUTPUT.

Run as a module by torchrun, one process a device:  python -m nemo_cdt.training OUTPUT/config.yaml

Imports nothing heavy by itself: Megatron's checkpoint writer starts a process that imports the main module again.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_cdt import console
from nemo_cdt.config import Accelerator, Config, Framework, load
from nemo_cdt.frameworks import framework_of
from nemo_cdt.utils.parent_watchdog import end_with_launcher
from nemo_cdt.utils.streams import sound_streams
from nemo_cdt.utils.user_errors import reported


def train(config: Config) -> None:
    """Trains, validates, checkpoints and exports. Needs the distributed environment of its launcher for several ranks.

    Raises:
        ValueError: for what only the files themselves can tell: data, tokenizer, checkpoint.
    """
    console.set_up()
    on_gpu = uses_gpu(config.trainer.accelerator)
    if console.is_first_rank():
        print(f"Training on {devices(config.trainer.world_size, on_gpu)}", flush=True)
    with _devices(on_gpu):
        _fit(config, on_gpu)


def uses_gpu(accelerator: Accelerator) -> bool:
    """Whether a run trains on GPUs: ``auto`` takes one where torch sees one."""
    import torch

    if accelerator is Accelerator.gpu and not torch.cuda.is_available():
        raise ValueError("trainer.accelerator=gpu, but torch sees no GPU; set trainer.accelerator=cpu, or auto")
    return accelerator is not Accelerator.cpu and torch.cuda.is_available()


def devices(count: int, on_gpu: bool) -> str:
    """What trains, for people."""
    import torch

    if on_gpu:
        return f"{count} x {torch.cuda.get_device_name()}"
    threads = torch.get_num_threads()
    return f"the CPU: {count} process{'es' * (count > 1)}, {threads} thread{'s' * (threads > 1)} each"


@contextmanager
def _devices(on_gpu: bool) -> Iterator[None]:
    if on_gpu:
        yield
        return
    from nemo_cdt.utils.cpu import cuda_on_cpu

    with cuda_on_cpu():
        yield


def _fit(config: Config, on_gpu: bool) -> None:
    # megatron and what drives it must first be imported inside `_devices`
    if framework_of(config) is Framework.bridge:
        from nemo_cdt.bridge import fit

        fit.fit(config, on_gpu)
    else:
        from nemo_cdt.nemo import assemble

        assemble.fit(config, on_gpu)


def main() -> None:
    sound_streams()
    end_with_launcher()
    with reported():
        config = load(Path(sys.argv[1]))
        config.resume |= int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0  # from what the last attempt saved
        train(config)


if __name__ == "__main__":
    main()
