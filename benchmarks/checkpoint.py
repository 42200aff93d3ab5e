"""A Hugging Face checkpoint of random weights, bf16, with the byte tokenizer, where no published one is at hand.

python benchmarks/checkpoint.py llama31_8b DIR [--layers N]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import AutoModelForCausalLM

from benchmarks.measured import ROOT, named, on_gpu
from nemo_cdt.checkpoint.huggingface import config_of
from nemo_cdt.data.tokenizer import load_tokenizer
from nemo_cdt.utils.atomic_write import new_folder
from nemo_cdt.utils.user_errors import reported


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(file.stem for file in (ROOT / "conf/model").glob("*.yaml"))
    parser.add_argument("model", choices=names, metavar="MODEL", help=", ".join(names))
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--layers", type=int, help="of the model, whose widths stay")
    arguments = parser.parse_args(words)
    with reported():
        write(arguments.model, arguments.folder, arguments.layers)


def write(name: str, folder: Path, layers: int | None) -> None:
    model = named(name, layers)
    torch.manual_seed(0)
    with new_folder(folder) as made, torch.device("cuda" if on_gpu() else "cpu"):
        load_tokenizer("byte").save_pretrained(made)
        config = config_of(model, torch.bfloat16, made)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(made)


if __name__ == "__main__":
    main()
