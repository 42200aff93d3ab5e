"""From a run's configuration to Megatron-Bridge's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.bridge.training.config import (
    CheckpointConfig,
    ConfigContainer,
    DistributedDataParallelConfig,
    DistributedInitConfig,
    LoggerConfig,
    OptimizerConfig,
    RNGConfig,
    SchedulerConfig,
    TokenizerConfig,
    TrainingConfig,
    ValidationConfig,
)
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer

from nemo_cdt.bridge.data import RowStreams
from nemo_cdt.config import Config, Precision
from nemo_cdt.megatron.settings import of_optimizer
from nemo_cdt.megatron.torch_adam import prepare


@dataclass(kw_only=True)
class Loadable(OptimizerConfig):
    """Makes an optimizer whose state can be loaded where it is torch's own Adam, too."""

    def provide(
        self,
        model_chunks: list[Any],
        config_overrides: Any = None,
        use_gloo_process_groups: bool = True,
        pg_collection: Any = None,
    ) -> MegatronOptimizer:
        made = get_megatron_optimizer(
            config=self,
            model_chunks=model_chunks,
            config_overrides=config_overrides,
            use_gloo_process_groups=use_gloo_process_groups,
            pg_collection=pg_collection,
        )
        prepare(made)
        return made


def container_of(config: Config, provider: Any, streams: RowStreams, *, resume: bool, on_gpu: bool) -> ConfigContainer:
    trainer, optim, parallel = config.trainer, config.optim, config.parallel
    checkpoints = Path(config.output, "checkpoints")
    of_validation = trainer.micro_batch_size * config.data_parallel
    return ConfigContainer(
        model=provider,
        train=TrainingConfig(
            micro_batch_size=trainer.micro_batch_size,
            global_batch_size=trainer.global_batch_size,
            train_iters=trainer.max_steps,
            exit_signal_handler=True,
        ),
        validation=ValidationConfig(
            eval_interval=trainer.val_interval or None,
            eval_iters=config.data.validation_samples // of_validation if trainer.val_interval else 0,
            eval_global_batch_size=of_validation,
            eval_micro_batch_size=trainer.micro_batch_size,
        ),
        optimizer=Loadable(**of_optimizer(config), fp16=False),
        scheduler=SchedulerConfig(  # the rate itself is set by nemo_cdt.bridge.callbacks
            lr_decay_style="constant",
            lr_warmup_iters=0,
            start_weight_decay=optim.weight_decay,
            end_weight_decay=optim.weight_decay,
            weight_decay_incr_style="constant",
            override_opt_param_scheduler=True,
        ),
        ddp=DistributedDataParallelConfig(
            use_distributed_optimizer=True,
            overlap_grad_reduce=parallel.overlap_grad_reduce,
            overlap_param_gather=parallel.overlap_param_gather,
            average_in_collective=False,
            grad_reduce_in_fp32=trainer.grad_dtype is Precision.fp32,
            check_for_nan_in_grad=False,
        ),
        dataset=streams,
        tokenizer=TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=provider.vocab_size),
        checkpoint=CheckpointConfig(
            save=str(checkpoints),
            load=str(checkpoints) if resume else None,
            save_interval=trainer.checkpoint_interval or None,
            most_recent_k=trainer.checkpoints_kept or -1,  # all
            ckpt_format="torch_dist",
            dist_ckpt_optim_fully_reshardable=True,  # a run may resume under another layout
            async_save=False,
        ),
        logger=LoggerConfig(log_interval=max(1, trainer.max_steps), tensorboard_dir=None, skip_train_metrics_log=True),
        dist=DistributedInitConfig(
            distributed_backend="nccl" if on_gpu else "gloo",
            use_gloo_process_groups=not on_gpu,
            disable_jit_fuser=not on_gpu,
        ),
        rng=RNGConfig(seed=trainer.seed),
    )
