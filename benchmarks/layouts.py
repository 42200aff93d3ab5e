"""One CDT step under each layout of two GPUs beside one GPU: noise masks, thresholds and losses.

bf16 sums in another order on another layout, and so does one GPU with the attention kernels for packed rows (here of
one document each) or with recomputation: the rows of one GPU show how far rounding alone goes. Weights are random and
the same everywhere, widths those of Llama-3.1-8B.

    python benchmarks/layouts.py make --out DIR                                    the weights, once
    python benchmarks/layouts.py run --out DIR                                     on one GPU
    torchrun --nproc-per-node 2 benchmarks/layouts.py run --out DIR                on two
    python benchmarks/layouts.py table --out DIR > benchmarks/results/layouts.json

Without a GPU the same goes through a tiny model in fp32 over gloo: to try the benchmark, not to report it.
"""

import argparse
import json
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nemo_cdt import config as c

WIDE = c.Model(
    name="llama31_8b",
    num_layers=4,
    hidden_size=4096,
    ffn_hidden_size=14336,
    num_attention_heads=32,
    num_query_groups=8,
    vocab_size=16384,
)
TINY = c.Model(name="tiny", vocab_size=384)
ONE_GPU = {
    "one GPU": {},
    "one GPU, again": {},
    "one GPU, other attention kernels": {"pack": True, "documents": 1},
    "one GPU, full recompute": {"trainer": {"recompute": c.Recompute.full}},
    "one GPU, packed": {"pack": True},
}
TWO_GPUS: dict[str, dict[str, Any]] = {
    "TP2": {"parallel": c.Parallel(tensor=2)},
    "TP2+SP": {"parallel": c.Parallel(tensor=2, sequence=True)},
    "CP2 p2p": {"parallel": c.Parallel(context=2)},
    "CP2 all_gather": {"parallel": c.Parallel(context=2, context_comm=c.ContextComm.all_gather)},
    "CP2 a2a": {"parallel": c.Parallel(context=2, context_comm=c.ContextComm.a2a)},
    "PP2": {"parallel": c.Parallel(pipeline=2)},
    "PP2 interleaved": {"parallel": c.Parallel(pipeline=2, virtual_pipeline=2)},
    "DP2": {},
    "DP2 overlapped": {"parallel": c.Parallel(overlap_grad_reduce=True, overlap_param_gather=True)},
    "CP2 packed": {"parallel": c.Parallel(context=2), "pack": True},
    "TP2+SP packed": {"parallel": c.Parallel(tensor=2, sequence=True), "pack": True},
    "PP2 packed": {"parallel": c.Parallel(pipeline=2), "pack": True},
}
LONG: dict[str, dict[str, Any]] = {
    "CP2 full recompute": {"parallel": c.Parallel(context=2), "trainer": {"recompute": c.Recompute.full}},
    "TP2+SP full recompute": {
        "parallel": c.Parallel(tensor=2, sequence=True),
        "trainer": {"recompute": c.Recompute.full},
    },
}
"""Instead of the others above 65,536 tokens; without a row of one GPU beside them."""


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def devices() -> AbstractContextManager:
    if on_gpu():
        return nullcontext()
    from nemo_cdt.cpu import cuda_on_cpu

    return cuda_on_cpu()


def make(out: Path) -> None:
    """Random weights as a NeMo checkpoint."""
    import torch

    from nemo_cdt.nemo import distributed
    from nemo_cdt.nemo.llama_weights import megatron_shapes

    device, dtype, model = ("cuda", torch.bfloat16, WIDE) if on_gpu() else ("cpu", torch.float32, TINY)
    torch.manual_seed(0)
    weights = {
        name: (torch.ones(shape) if len(shape) == 1 else torch.randn(shape, device=device).cpu() * 0.02).to(dtype)
        for name, shape in megatron_shapes(model).items()
    }
    (out / "init").mkdir(parents=True)
    distributed.write(out / "init", weights, model, tokenizer=out / "none")


def configured(seq_length: int, out: Path, output: str, world: int, options: dict[str, Any]) -> c.Config:
    packed, documents = options.get("pack", False), options.get("documents", 4)
    document_length = seq_length // documents - 8 if packed and documents > 1 else None
    return c.Config(
        output=output,
        init=c.Init(nemo=str(out / "init")),
        model=replace(WIDE if on_gpu() else TINY, tokenizer="byte"),
        parallel=options.get("parallel", c.Parallel()),
        objective=c.Objective(lr=1e-5, beta=5.0),
        data=c.Data(seq_length=seq_length, pack=packed, document_length=document_length),
        trainer=c.Trainer(
            max_steps=1,
            global_batch_size=2,
            devices=world,
            accelerator=c.Accelerator.gpu if on_gpu() else c.Accelerator.cpu,
            precision=c.Precision.bf16 if on_gpu() else c.Precision.fp32,
            **options.get("trainer", {}),
        ),
        optim=c.Optim(min_lr=1e-6),
    )


def step(config: c.Config) -> tuple[dict[str, float], list[dict[str, np.ndarray]]]:
    """The metrics of one step, and what detection found in each micro-batch on this rank."""
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint

    from nemo_cdt.nemo import assemble
    from nemo_cdt.nemo.callback import ContextDenoising

    metrics: dict[str, float] = {}
    found: list[dict[str, np.ndarray]] = []

    class Seen(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            metrics.update({k: float(v) for k, v in trainer.callback_metrics.items()})

    def observe(detection: Any) -> None:
        batch = detection.batch
        keys = {k: detection.share(batch[k].t())[:, 0].cpu().numpy() for k in ("positions", "documents")}
        found.append(
            keys
            | {
                "score": detection.score_SB[:, 0].cpu().numpy(),
                "noise": detection.noise_SB[:, 0].cpu().numpy(),
                "threshold": detection.threshold_N.cpu().numpy(),
            }
        )

    trainer, model, data = assemble.build(config, on_gpu())
    trainer.callbacks = [x for x in trainer.callbacks if not isinstance(x, ModelCheckpoint)] + [Seen()]
    next(x for x in trainer.callbacks if isinstance(x, ContextDenoising)).observer = observe
    trainer.fit(model, data)
    return metrics, found


def fresh_store() -> None:
    """torchrun's own store remembers the last process group, in which a second one of this process would get lost."""
    if "MASTER_PORT" in os.environ:
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)


def run(out: Path, lengths: list[int], only: list[str]) -> None:
    from nemo_cdt.nemo import assemble
    from nemo_cdt.nemo.versions import versions

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    for seq_length in lengths:
        for name, options in (LONG if seq_length > 65536 else ONE_GPU if world == 1 else TWO_GPUS).items():
            if only and name not in only:
                continue
            output = out / "runs" / f"{name}-{seq_length}".replace(" ", "_")
            output.mkdir(parents=True, exist_ok=True)
            begin, result = time.time(), {"name": name, "seq_length": seq_length, "rank": rank, "world": world}
            fresh_store()
            try:
                metrics, found = step(configured(seq_length, out, str(output), world, options))
                arrays = {f"{i}/{k}": v for i, d in enumerate(found) for k, v in d.items()}
                np.savez(out / f"{name}-{seq_length}-{rank}.npz", **arrays)
                result |= {"metrics": metrics}
            except Exception as error:
                result |= {"error": str(error).strip().splitlines()[-1]}
            finally:
                assemble.tear_down()
            result |= {"seconds": time.time() - begin, "versions": versions(), "date": time.strftime("%Y-%m-%d")}
            (out / f"{name}-{seq_length}-{rank}.json").write_text(json.dumps(result))
            if rank == 0:
                print(json.dumps(result), flush=True)


Token = tuple[int, int, int]
"""Row of the batch, document in it, position in that: where a row has it depends on the layout's alignment."""


def read(out: Path, name: str, seq_length: int, data_parallel: int) -> dict[Token, tuple[float, bool, float]]:
    """Score, noise and threshold of every token, of all ranks together."""
    tokens: dict[Token, tuple[float, bool, float]] = {}
    for file in sorted(out.glob(f"{name}-{seq_length}-*.npz")):
        rank, saved = int(file.stem.rsplit("-", 1)[1]), np.load(file)
        for index in sorted({key.split("/")[0] for key in saved}):
            part = {key.split("/")[1]: saved[key] for key in saved if key.split("/")[0] == index}
            row = int(index) * data_parallel + (rank if data_parallel > 1 else 0)
            for position, document, score, noise in zip(
                part["positions"], part["documents"], part["score"], part["noise"], strict=True
            ):
                if document >= 0:
                    found = (float(score), bool(noise), float(part["threshold"][document]))
                    tokens[row, int(document), int(position)] = found
    starts: dict[tuple[int, int], int] = {}
    for row, document, position in tokens:
        starts[row, document] = min(position, starts.get((row, document), position))
    return {(r, d, position - starts[r, d]): found for (r, d, position), found in tokens.items()}


def table(out: Path) -> None:
    rows = []
    for file in sorted(out.glob("*-0.json"), key=lambda f: f.stat().st_mtime):
        result = json.loads(file.read_text())
        name, seq_length, packed = result["name"], result["seq_length"], "packed" in result["name"]
        row = {k: result[k] for k in ("name", "seq_length", "world", "date", "versions")}
        if "error" in result:
            rows.append(row | {"error": result["error"]})
            continue
        reference = "one GPU, packed" if packed else "one GPU"
        if not (out / f"{reference}-{seq_length}-0.json").exists():
            rows.append(row | {"metrics": result["metrics"]})
            continue
        theirs = read(out, reference, seq_length, 1)
        ours = read(out, name, seq_length, 2 if name.startswith("DP2") else 1)
        expected = json.loads((out / f"{reference}-{seq_length}-0.json").read_text())["metrics"]
        metrics = result["metrics"]
        thresholds = [(ours[k][2], theirs[k][2]) for k in ours]
        scores = [abs(ours[k][0] - theirs[k][0]) / theirs[k][0] for k in ours if theirs[k][0] > 0]
        rows.append(
            row
            | {
                "against": reference,
                "tokens": len(ours),
                "same_tokens": ours.keys() == theirs.keys(),
                "mask_agreement": float(np.mean([ours[k][1] == theirs[k][1] for k in ours])),
                "score_median_relative_difference": float(np.median(scores)),
                "threshold_relative_difference": float(max(abs(a - b) / b for a, b in thresholds)),
                **{
                    f"{key}_relative_difference": abs(metrics[key] - expected[key]) / expected[key]
                    for key in ("detection_loss", "reduced_train_loss", "grad_norm", "noise_fraction")
                },
                "noise_fraction": metrics["noise_fraction"],
                "peak_memory_gib": metrics.get("peak_memory_gib"),
            }
        )
    print(json.dumps(rows, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["make", "run", "table"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lengths", default="8192,32768")
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.verb == "table":
        table(arguments.out)
        return
    with devices():
        if arguments.verb == "make":
            make(arguments.out)
        else:
            run(arguments.out, [int(n) for n in arguments.lengths.split(",")], arguments.only)


if __name__ == "__main__":
    main()
