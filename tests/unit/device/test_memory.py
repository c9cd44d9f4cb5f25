# SPDX-License-Identifier: Apache-2.0
"""Bytes of live tensors on a CUDA device."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from training_exporter.device.memory import allocated_bytes

COUNTERS = {"allocated_bytes": {"all": {"current": 4096, "peak": 8192}, "small_pool": {}}}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[int | None, dict[str, Any]]:
    """A process that uses CUDA, with these counters by device."""
    counters: dict[int | None, dict[str, Any]] = {None: COUNTERS, 1: {}}
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", counters.__getitem__)
    return counters


def test_without_cuda_there_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not zero, and CUDA is not initialised to find out."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", lambda: pytest.fail("CUDA was initialised"))

    assert allocated_bytes() is None


def test_without_torch_there_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """And torch is not imported to find out."""
    monkeypatch.delitem(sys.modules, "torch")

    assert allocated_bytes() is None
    assert "torch" not in sys.modules


def test_it_is_what_live_tensors_hold_now(cuda: dict[int | None, dict[str, Any]]) -> None:
    """Neither the peak nor what the allocator keeps in reserve."""
    assert allocated_bytes() == 4096


def test_a_device_that_was_never_used_has_no_number(
    cuda: dict[int | None, dict[str, Any]],
) -> None:
    """Absent is absent."""
    assert allocated_bytes(1) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_equals_torchs_own_number() -> None:
    """The quick way gives what `memory_allocated` gives."""
    held = torch.ones(1 << 20, device="cuda")

    assert allocated_bytes() == torch.cuda.memory_allocated() >= held.nbytes
