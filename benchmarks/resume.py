"""Kills a run of the recipe after its first checkpoint, resumes it, and sets the losses beside an uninterrupted run's.

On a GPU the widths are those of Llama-3.1-8B, bf16, 2 layers; elsewhere the tiny model, fp32.

    python benchmarks/resume.py --out benchmarks/results/resume.json
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

STEPS, INTERVAL = 6, 3
COMMON = (
    f"trainer.max_steps={STEPS} trainer.checkpoint_interval={INTERVAL} trainer.global_batch_size=2 "
    "trainer.val_interval=0 optim.warmup_steps=0 compare_to=null report=false export.hf=null"
)
ON_GPU = "model=llama31_8b model.num_layers=2 model.vocab_size=16384 data.seq_length=8192 trainer.precision=bf16"


def recipe(output: Path, *more: str) -> list[str]:
    import torch

    model = ON_GPU if torch.cuda.is_available() else ""
    return [sys.executable, str(ROOT / "recipes/cdt_llama31.py"), *f"{COMMON} {model} output={output}".split(), *more]


def killed(output: Path) -> int:
    """Trains until the first checkpoint is linked, kills it there with SIGKILL; the steps in its metrics by then."""
    process = subprocess.Popen(recipe(output))
    while not (output / "checkpoints/last").exists():
        if process.poll() is not None:
            raise SystemExit(f"the run ended by itself with {process.returncode}")
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return max(losses(output))


def losses(output: Path) -> dict[int, float]:
    rows = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from nemo_cdt.nemo.versions import versions

    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder, "whole"), Path(folder, "cut")
        subprocess.run(recipe(whole), check=True)
        at = killed(cut)
        subprocess.run(recipe(cut, "resume=true"), check=True)
        result = {
            "command": " ".join(sys.argv),
            "date": time.strftime("%Y-%m-%d"),
            "versions": versions(),
            "recipe": recipe(cut)[1:],
            "killed_after_step": at,
            "uninterrupted": losses(whole),
            "resumed": losses(cut),
        }
    result["largest_relative_difference"] = max(
        abs(result["resumed"][step] - loss) / loss for step, loss in result["uninterrupted"].items()
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
