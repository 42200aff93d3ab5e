"""Megatron-Bridge where Transformer Engine is not installed: on a CPU.

Megatron-Core without it falls back to layers of its own. Bridge's adapters import it whatever is used: they get names
under which nothing can be built.
"""

import importlib.util
import sys
import types

from torch import nn


class _Named(type):
    """A class that has, by any name, another of its kind."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("_"):
            raise AttributeError(name)
        made = _Named(name, (nn.Module,), {})
        setattr(cls, name, made)
        return made


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Named(name, (nn.Module,), {})
        setattr(self, name, made)
        return made


def import_bridge() -> None:
    """Imports it; call it before anything else does. Megatron-Core first, which then knows that there is no engine."""
    if importlib.util.find_spec("transformer_engine") is not None:
        return
    import megatron.core.extensions.transformer_engine
    import megatron.core.transformer.transformer_block
    from megatron.core.utils import get_te_version

    get_te_version()  # remembers that there is none
    root, pytorch = types.ModuleType("transformer_engine"), _Module("transformer_engine.pytorch")
    root.pytorch, root.__version__, root.__path__ = pytorch, "0.0.0", []  # type: ignore[attr-defined]
    standins = {"transformer_engine": root, "transformer_engine.pytorch": pytorch}
    sys.modules.update(standins)
    try:
        import megatron.bridge.training.pretrain  # noqa: F401
    finally:
        for name in standins:
            del sys.modules[name]
