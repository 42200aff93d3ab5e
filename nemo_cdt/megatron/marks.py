"""How traces of torch's profiler mark the parts of a step."""

WINDOWS = "windows"
"""Forward passes of an objective's own, before training's."""
DETECTION = "detection"
DENOISING = "denoising"
