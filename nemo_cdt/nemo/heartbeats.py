"""Signs of life for nvidia-resiliency-ext, whose launcher ends a rank from which it hears none."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from nvidia_resiliency_ext.fault_tolerance import RankMonitorClientError
from nvidia_resiliency_ext.ptl_resiliency import FaultToleranceCallback

log = logging.getLogger(__name__)


class Heartbeats(FaultToleranceCallback):
    """Slurm's SIGTERM ends the monitors too, and at once: the run must save all the same."""

    _alone = False
    _training: Trainer

    def setup(self, trainer: Trainer, *others: Any, **named: Any) -> None:
        self._training = trainer
        super().setup(trainer, *others, **named)

    @contextmanager
    def _monitor_may_be_gone(self) -> Iterator[None]:
        try:
            yield
        except (RankMonitorClientError, OSError) as error:
            if not (self._alone or self._training.received_sigterm):
                log.warning(f"the monitor of this rank is gone, a hang would not be seen: {error}")
            self._alone = True

    def _send_ft_heartbeat(self) -> None:
        with self._monitor_may_be_gone():
            super()._send_ft_heartbeat()

    def _shutdown_fault_tolerance(self) -> None:
        with self._monitor_may_be_gone():
            super()._shutdown_fault_tolerance()
        self.fault_tol_client = None
