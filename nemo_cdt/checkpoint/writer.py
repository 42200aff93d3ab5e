"""The process in which Megatron's writers of a checkpoint meet."""

import multiprocessing
from multiprocessing.managers import SyncManager

from megatron.core.dist_checkpointing.strategies import filesystem_async

from nemo_cdt.utils.parent_watchdog import end_with_parent


def start_writer(method: str = "spawn") -> None:
    """Starts it as Megatron does but for how it ends, before anything is saved: Megatron starts its own with the first.

    A SIGTERM to all of a job, as Slurm sends it, would leave the writers without it, and a SIGKILL of this process
    would leave it behind.
    """
    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=multiprocessing.get_context(method))
        manager.start(end_with_parent)
        filesystem_async._results_queue = manager.Queue()
