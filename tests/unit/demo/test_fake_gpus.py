# SPDX-License-Identifier: Apache-2.0
"""The GPUs of a demo on a machine without any."""

from __future__ import annotations

import os
from pathlib import Path

import pynvml
import pytest

from training_exporter.demo.fake_gpus import fake_gpus
from training_exporter.demo.plan import DemoError
from training_exporter.demo.stand_in_nvml import VARIABLE, Control


def test_nvml_has_as_many_gpus_as_were_asked_for(
    nvml: Control, caplog: pytest.LogCaptureFixture
) -> None:
    """At work rather than still, and the log says that they are none."""
    with caplog.at_level("INFO", logger="training_exporter.demo"), fake_gpus(3):
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(2)
        assert pynvml.nvmlDeviceGetCount() == 3
        assert pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) != nvml.gpu(2).energy
        assert "no hardware" in pynvml.nvmlDeviceGetName(gpu)

    assert caplog.messages == ["3 stand-in GPUs without hardware: what they report is made up"]


def test_nothing_is_left_behind(nvml: Control) -> None:
    """Neither a setting nor a file."""
    with fake_gpus(1):
        folder = Path(os.environ[VARIABLE]).parent
        assert folder.exists()

    assert os.environ[VARIABLE] == str(nvml.path)
    assert not folder.exists()


def test_without_fake_gpus_nvml_is_as_the_machine_has_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No compiler is looked for, and nothing is said."""
    monkeypatch.setenv("CC", "no-such-compiler")

    with fake_gpus(0):
        assert VARIABLE not in os.environ
    assert caplog.messages == []


def test_a_machine_that_cannot_compile_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any training begins."""
    monkeypatch.setenv("CC", "no-such-compiler")

    with (
        pytest.raises(DemoError, match=r"there is no no-such-compiler: install gcc or clang"),
        fake_gpus(2),
    ):
        pass
    assert VARIABLE not in os.environ
