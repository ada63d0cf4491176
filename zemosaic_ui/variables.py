"""Environment variables that win over settings: which one decides what a control of the window shows."""

from __future__ import annotations

import os
from collections.abc import Mapping

from zemosaic_config import ENVIRONMENT

__all__ = ["GPU_VARIABLES", "overruling"]

GPU_VARIABLES: dict[str, tuple[str, ...]] = {
    "ZEMOSAIC_GPU": ("use_gpu_phase5", "gpu_mode"),
    "ZEMOSAIC_GPU_DEVICE": ("gpu_id_phase5", "gpu_selector"),
    "ZEMOSAIC_GPU_MEMORY_MB": ("gpu_memory_mb",),
    "ZEMOSAIC_GPU_RESERVE_MB": (),
    "ZEMOSAIC_GPU_CHUNK_ROWS": (),
    "ZEMOSAIC_GPU_SIMULATE": (),
    "ZEMOSAIC_FORCE_CPU_INTERTILE": (),
    "CUDA_VISIBLE_DEVICES": (),
}
"""Variable of the graphics card -> options it wins over; the text key of its meaning is ``variable.<name>``."""


def overruling(option: str, environ: Mapping[str, str] | None = None) -> tuple[str, str] | None:
    """Return the variable that wins over an option, and its value; None when none is set."""
    environ = os.environ if environ is None else environ
    names = [name for name, options in GPU_VARIABLES.items() if option in options]
    names += [name for name, key in ENVIRONMENT.items() if key == option]
    for name in names:
        if environ.get(name, "").strip():
            return name, environ[name].strip()
    return None
