"""Starts the same run from random weights N times in a row: the first losses must be finite and equal.

NeMo 2.7.3 copies parameters that are still being initialised (design.md section 4). ``--racy`` runs it as it ships.

    python benchmarks/starts.py --starts 20 --layers 4 --seq-length 8192 --out benchmarks/results/starts.json
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nemo_cdt import config as c


def configured(arguments: argparse.Namespace, output: str) -> c.Config:
    return c.Config(
        output=output,
        model=c.Model(
            name="llama31_8b",
            num_layers=arguments.layers,
            hidden_size=4096,
            ffn_hidden_size=14336,
            num_attention_heads=32,
            num_query_groups=8,
            vocab_size=128256,
        ),
        data=c.Data(seq_length=arguments.seq_length),
        trainer=c.Trainer(max_steps=arguments.steps, global_batch_size=1, accelerator=c.Accelerator.gpu),
    )


def start(config: c.Config) -> dict[str, list[float] | float | str]:
    """Losses, noise fractions and strengths of a few steps, or how they died."""
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint

    from nemo_cdt.nemo import assemble

    names = [
        "reduced_train_loss",
        "detection_loss",
        "noise_fraction",
        "delta_to_embedding",
        "changed_fraction",
        "grad_norm",
        "step_time",
        "detection_time",
        "tokens_per_second",
        "peak_memory_gib",
    ]
    seen: dict[str, list[float]] = {name: [] for name in names}

    class Seen(Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            for name in names:
                seen[name].append(float(trainer.callback_metrics.get(name, "nan")))

    begin = time.time()
    try:
        trainer, model, data = assemble.build(config, on_gpu=True)
        trainer.callbacks = [x for x in trainer.callbacks if not isinstance(x, ModelCheckpoint)] + [Seen()]
        trainer.fit(model, data)
        return seen | {"seconds": time.time() - begin}
    except RuntimeError as error:
        return seen | {"error": str(error).strip().splitlines()[0]}
    finally:
        assemble.tear_down()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seq-length", type=int, default=8192)
    parser.add_argument("--racy", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from nemo_cdt.nemo.versions import versions

    if arguments.racy:
        from nemo import lightning as nl

        from nemo_cdt.nemo import assemble

        assemble.SynchronizedStrategy, assemble.SynchronizedPrecision = nl.MegatronStrategy, nl.MegatronMixedPrecision
    output = tempfile.mkdtemp()
    runs = []
    for index in range(arguments.starts):
        shutil.rmtree(output, ignore_errors=True)
        Path(output).mkdir()
        runs.append(start(configured(arguments, output)))
        print(index, json.dumps(runs[-1]), flush=True)
        if arguments.out:
            result = {"command": " ".join(sys.argv), "date": time.strftime("%Y-%m-%d"), "versions": versions()}
            arguments.out.write_text(json.dumps(result | {"runs": runs}, indent=1))
    first = {run["reduced_train_loss"][0] for run in runs if run["reduced_train_loss"]}
    died = sum("error" in run for run in runs)
    print(f"{arguments.starts} starts, {died} died, first losses {sorted(first)}")


if __name__ == "__main__":
    main()
