from __future__ import annotations

import sys

import pytest

import cuda_utils


def test_the_card_is_chosen_before_cupy_is_there(monkeypatch):
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert cuda_utils.enforce_nvidia_gpu() is cuda_utils.gpu_supported()
    assert cuda_utils.os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    cuda_utils.enforce_nvidia_gpu(1)
    assert cuda_utils.os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert cuda_utils.os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setitem(sys.modules, "cupy", sys)
    cuda_utils.enforce_nvidia_gpu(1)
    with pytest.raises(RuntimeError, match="already"):
        cuda_utils.enforce_nvidia_gpu(0)
