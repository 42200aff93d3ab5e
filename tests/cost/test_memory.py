from dataclasses import replace

import pytest

from nemo_cdt.config import (
    Config,
    Data,
    Optim,
    Parallel,
    Precision,
    Recompute,
    Resharding,
    Trainer,
)
from nemo_cdt.cost.memory import (
    GIB,
    checkpoint_bytes,
    detection_peak,
    detection_recompute,
    peak,
    saving_host_bytes,
    stage_parameters,
    training_peak,
)
from nemo_cdt.objectives import Settings
from nemo_cdt.objectives.cdt import DetectionRecompute
from tests.cost.models import (
    LLAMA3_8B,
    LLAMA31_8B,
    LLAMA31_70B,
    LLAMA32_1B,
    MISTRAL_7B,
    QWEN3_8B,
    QWEN25_7B,
)
from tests.runs import settings_of

NONE, MLP, FULL = Recompute
PUBLISHED = {  # gigabytes a GPU at 131,072 tokens, performance.md section 3.2, of which 4 are the runtime's
    # (TP, CP, GPUs): static, training with none, mlp and full recompute, detection with none
    (1, 8, 8): (60, 139, 92, 73, 115),
    (2, 4, 8): (36, 115, 67, 49, 91),
    (4, 2, 8): (24, 103, 55, 36, 79),
    (8, 1, 8): (18, 97, 49, 30, 73),
    (2, 8, 16): (30, 72, 48, 38, 60),
    (4, 4, 16): (18, 59, 36, 26, 48),
}


def llama(
    length: int = 131072,
    gpus: int = 1,
    recompute: Recompute = NONE,
    batch: int = 1,
    objective: Settings | None = None,
    grad_dtype: Precision = Precision.fp32,
    offload: float = 0.0,
    offload_activations: int = 0,
    mlp_chunks: int = 1,
    **parallel: int | None,
) -> Config:
    return Config(
        model=LLAMA31_8B,
        data=Data(seq_length=length),
        objective=objective or settings_of(),
        optim=Optim(offload=offload),
        parallel=Parallel(**parallel, sequence=parallel.get("tensor", 1) > 1),
        trainer=Trainer(
            devices=gpus,
            global_batch_size=batch,
            recompute=recompute,
            grad_dtype=grad_dtype,
            offload_activations=offload_activations,
            mlp_chunks=mlp_chunks,
        ),
    )


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (LLAMA3_8B, 8030261248),
        (LLAMA31_8B, 8030261248),
        (LLAMA31_70B, 70553706496),
        (LLAMA32_1B, 1235814400),
        (QWEN25_7B, 7615616512),
        (QWEN3_8B, 8190735360),
        (MISTRAL_7B, 7248023552),
    ],
)
def test_a_model_has_as_many_parameters_as_was_published(model, expected):
    assert stage_parameters(Config(model=model), 0) == expected


def test_stages_have_all_parameters_together_and_tied_tables_on_both_ends():
    for model, extra in ((LLAMA31_8B, 0), (LLAMA32_1B, 128256 * 2048)):
        config = Config(model=model, parallel=Parallel(pipeline=4), trainer=Trainer(devices=4))

        assert sum(stage_parameters(config, stage) for stage in range(4)) == (
            stage_parameters(Config(model=model), 0) + extra
        )


@pytest.mark.parametrize("split", PUBLISHED)
def test_a_split_over_gpus_needs_what_the_facts_say(split):
    tensor, context, gpus = split
    batch = gpus // (tensor * context)
    plain, mlp, full = (
        llama(gpus=gpus, tensor=tensor, context=context, recompute=policy, batch=batch) for policy in Recompute
    )
    training = [training_peak(config) for config in (plain, mlp, full)]
    static = training[0].parameters + training[0].gradients + training[0].optimizer
    peaks = [memory.allocated for memory in (*training, detection_peak(plain, NONE))]

    assert [static / 1e9, *(each / 1e9 + 4 for each in peaks)] == pytest.approx(PUBLISHED[split], rel=0.1)


def test_what_a_layer_keeps_per_token_is_what_transformer_engine_keeps():
    config = llama(length=8192)
    unit = 32 * 8192 * 4096
    norm = 2 * 8192 * 4096  # the final norm's input

    def kept(memory):
        return (memory.activations - norm) / unit

    assert [kept(training_peak(llama(length=8192, recompute=policy))) for policy in Recompute] == [34, 11, 2]
    assert [kept(detection_peak(config, policy)) for policy in Recompute] == [23, 9, 2]


def test_qk_norm_keeps_queries_and_keys_twice_and_dropout_its_masks():
    def kept(**changes):
        config = llama(length=8192)
        config.model = replace(QWEN3_8B, **changes)
        return training_peak(config).activations

    tokens = 36 * 8192  # of all layers
    assert kept() - kept(qk_norm=False) == tokens * 2 * (4096 + 1024)
    assert kept(hidden_dropout=0.1) - kept() == tokens * 2 * 4096
    assert kept(head_dim=64) - kept() == -tokens * (2 * (2 * 2560 + 512) + 2 * 2048)


def test_the_logits_are_bounded_at_any_length():
    lengths = (8192, 131072)
    heads = [training_peak(llama(length=n)).head for n in lengths]
    rows = [3 * 2 * 4096 * n for n in lengths]

    assert heads[0] - rows[0] == heads[1] - rows[1] == pytest.approx(1.5 * GIB + 4 * 128256 * 4096)
    assert detection_peak(llama(), NONE).head - rows[1] == 2 * GIB


def test_the_mlp_in_chunks_leaves_a_layers_backward_little():
    unit = 131072 * 4096  # bytes for each of h
    whole, chunked = (training_peak(llama(recompute=FULL, mlp_chunks=chunks)).layer / unit for chunks in (1, 8))

    assert whole == 34 - 2 + 2 + 23  # all it kept but its input, a residual's gradient, the MLP's gradients
    assert chunked == 11 - 2 + 2 * 2 + 2 * 23 / 8


def test_a_pipeline_keeps_the_deltas_of_the_whole_batch_on_its_first_stage():
    objective = settings_of("cdt")
    for virtual in (None, 2):
        config = llama(gpus=4, pipeline=4, batch=16, recompute=FULL, virtual_pipeline=virtual, objective=objective)

        assert training_peak(config).deltas == 16 * GIB  # 131,072 tokens of 4,096 bf16 values are one GiB
    assert training_peak(llama(batch=16)).deltas == GIB
    assert training_peak(llama(batch=16, objective=settings_of("ce"))).deltas == 0


def test_interleaving_keeps_more_layers_alive_than_one_stage_each():
    simple, interleaved = (
        training_peak(llama(gpus=4, pipeline=4, batch=16, virtual_pipeline=virtual)).activations
        for virtual in (None, 4)
    )

    assert interleaved / simple == pytest.approx(1 + 3 / 16)  # (PP - 1) / (PP * VPP) more, as Megatron's warm-up has it


def test_offloading_and_narrow_gradients_take_their_share_away():
    whole, half = training_peak(llama(length=8192)), training_peak(llama(length=8192, offload=0.5))
    narrow = training_peak(llama(length=8192, grad_dtype=Precision.bf16))
    away = training_peak(llama(length=8192, offload_activations=16))

    assert half.optimizer == whole.optimizer / 2
    assert narrow.gradients == whole.gradients / 2
    assert away.activations / whole.activations == pytest.approx(17 / 32, rel=0.01)


def test_adam_copies_a_bf16_gradient_first():
    config = llama(length=1024, recompute=FULL, grad_dtype=Precision.bf16)

    assert peak(config, FULL).working == 4 * stage_parameters(config, 0)


@pytest.mark.parametrize(
    ("room", "recompute", "expected"),
    [(1000, FULL, NONE), (80, FULL, MLP), (40, FULL, FULL), (1, FULL, FULL), (1, MLP, MLP), (1000, NONE, NONE)],
)
def test_detection_recomputes_the_least_that_fits_and_at_worst_what_training_does(room, recompute, expected):
    config = llama(gpus=8, tensor=2, context=4, recompute=recompute)

    policy, why = detection_recompute(config, room * GIB)

    assert policy is expected
    assert why.startswith(f"detection recomputes {expected}: of {room:.1f} GiB it needs about ")


def test_detection_recomputes_what_is_asked():
    config = llama(objective=settings_of(detection_recompute=DetectionRecompute.selective))

    assert detection_recompute(config, 1)[0] is MLP


@pytest.mark.parametrize("layout", [{}, {"tensor": 2}, {"tensor": 2, "context": 4}])
def test_saving_takes_two_copies_of_the_checkpoint_at_most_from_all_hosts(layout):
    config = llama(gpus=8, **layout)
    assert 8 * saving_host_bytes(config) == pytest.approx(2 * checkpoint_bytes(config), rel=0.001)


def test_saving_for_any_layout_takes_the_whole_state_on_every_rank():
    config = llama(gpus=8, tensor=2)
    config.trainer.checkpoint_resharding = Resharding.full
    assert saving_host_bytes(config) > 12 * stage_parameters(config, 0)
    overlapped = replace(config, parallel=replace(config.parallel, overlap_grad_reduce=True))
    assert 12 * stage_parameters(config, 0) < saving_host_bytes(overlapped) < saving_host_bytes(config)
