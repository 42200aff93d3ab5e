"""Models as conf/ has them."""

from omegaconf import OmegaConf

from nemo_cdt.config import Model
from nemo_cdt.config.compose import conf_dir


def model(name: str) -> Model:
    return OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(Model), OmegaConf.load(conf_dir() / f"model/{name}.yaml"))
    )


LLAMA31_8B, LLAMA31_70B, LLAMA32_1B = model("llama31_8b"), model("llama31_70b"), model("llama32_1b")
LLAMA3_8B, QWEN25_7B, QWEN3_8B, MISTRAL_7B = (
    model(name) for name in ("llama3_8b", "qwen25_7b", "qwen3_8b", "mistral_7b")
)
