"""Choose the NVIDIA card before CuPy is imported; afterwards CUDA no longer looks at these variables."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

from zemosaic_core.gpu.probe import has_driver

__all__ = ["enforce_nvidia_gpu", "gpu_supported"]


def gpu_supported() -> bool:
    """Return whether CuPy and an NVIDIA driver are installed; on any system, without loading CuPy.

    Whether a card really works is answered by `zemosaic_utils.gpu_is_available`.
    """
    return find_spec("cupy") is not None and has_driver()[0]


def enforce_nvidia_gpu(device: int | str | None = None) -> bool:
    """Number the cards as the other tools do, and show CUDA only one of them if asked to.

    Parameters
    ----------
    device : int, str or None
        CUDA number or UUID of the only card to show; None shows all that are shown now.

    Returns
    -------
    bool
        `gpu_supported`.

    Raises
    ------
    RuntimeError
        A card is asked for, but CuPy is imported already and would not notice.
    """
    if device is not None and "cupy" in sys.modules and os.environ.get("CUDA_VISIBLE_DEVICES") != str(device):
        raise RuntimeError(f"CuPy is imported already; choose the card {device!r} before that")
    # NVIDIA's tools list cards by their place in the machine; CUDA by itself puts the fastest first.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(device)
    return gpu_supported()
