# SPDX-License-Identifier: Apache-2.0
"""Compiling the stand-in NVML library, and the file that both sides of it share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest

from training_exporter.demo import stand_in_nvml
from training_exporter.demo.plan import DemoError
from training_exporter.demo.stand_in_nvml import Control


def test_two_processes_share_a_control_file(nvml: Control) -> None:
    """Whoever opens the file can change what others are answered."""
    pynvml.nvmlInit()
    Control(nvml.path).gpu(0).power = 7

    assert pynvml.nvmlDeviceGetPowerUsage(pynvml.nvmlDeviceGetHandleByIndex(0)) == 7


def test_a_function_that_is_not_offered_is_named(nvml: Control) -> None:
    """A typing error in a test is no silent success."""
    with pytest.raises(ValueError, match="no function 'nvmlDeviceGetPower': use one of nvmlInit"):
        nvml.fail("nvmlDeviceGetPower", 3)


def test_a_file_of_something_else_is_refused_by_both_sides(
    nvml: Control, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rather than read as a layout that it has not."""
    other = nvml.path.with_name("other")
    other.write_bytes(b"x" * os.path.getsize(nvml.path))
    monkeypatch.setenv(stand_in_nvml.VARIABLE, str(other))

    with pytest.raises(ValueError, match="no control file of version 1"):
        Control(other)
    with pytest.raises(pynvml.NVMLError_Unknown):
        pynvml.nvmlInit()
    assert f"{other} is no control file of version 1" in capfd.readouterr().err


def test_without_a_control_file_the_numbers_move(
    nvml: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two GPUs at work, for whoever just loads the library."""
    monkeypatch.delenv(stand_in_nvml.VARIABLE)
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)

    assert pynvml.nvmlDeviceGetCount() == 2
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) != nvml.gpu(0).energy


def test_a_machine_without_a_c_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)

    with pytest.raises(DemoError, match="there is no cc: install gcc or clang"):
        stand_in_nvml.build(tmp_path)


def test_a_compiler_that_fails(
    binary: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its first error is told, in one line."""
    monkeypatch.setenv("CC", f"{binary('cc')} --no-such-option")

    with pytest.raises(DemoError, match=r"cannot compile the stand-in NVML: .*error") as caught:
        stand_in_nvml.build(tmp_path)
    assert "\n" not in str(caught.value)


def test_it_compiles_without_a_warning(
    binary: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also by a compiler that takes them for errors and has another standard by default."""
    monkeypatch.setenv("CC", f"{binary('cc')} -Werror -pedantic")

    assert stand_in_nvml.build(tmp_path).exists()


def test_a_process_that_uses_the_real_library_is_refused(
    binary: Callable[[str], str], tmp_path: Path
) -> None:
    """It would go on to hear of the real GPUs."""
    real = tmp_path / "real.c"
    real.write_text("int nvmlInit_v2(void) { return 0; }")
    library = tmp_path / stand_in_nvml.SONAME
    flags = ("-shared", "-fPIC", f"-Wl,-soname,{stand_in_nvml.SONAME}")
    subprocess.run([binary("cc"), *flags, "-o", library, real], check=True)
    script = (
        "import ctypes, sys, pathlib\n"
        "from training_exporter.demo import stand_in_nvml\n"
        "ctypes.CDLL(sys.argv[1])\n"
        "stand_in_nvml.load(pathlib.Path('not looked at'))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, library], capture_output=True, text=True, check=False
    )

    assert "DemoError: this process uses NVIDIA's own libnvidia-ml.so.1 already" in done.stderr
