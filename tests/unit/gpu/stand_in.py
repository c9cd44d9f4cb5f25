# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the real pynvml on a stand-in NVML library, whose answers and faults a test decides.

Other folders import both fixtures into a conftest of their own, as conftest.py here does. Once a
process has loaded the stand-in it cannot have the real library any more: tests of real hardware
need a process of their own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pynvml
import pytest

from training_exporter.demo import stand_in_nvml
from training_exporter.demo.plan import DemoError
from training_exporter.demo.stand_in_nvml import Control

_compiled = cache(stand_in_nvml.build)


@pytest.fixture
def stand_in_library(
    binary: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The library, compiled once for all tests, and not loaded."""
    binary("cc")
    return _compiled(tmp_path_factory.getbasetemp())


@pytest.fixture
def nvml(
    stand_in_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Control]:
    """A control file, which pynvml meets at its next nvmlInit as if the process had just begun."""
    try:
        library = stand_in_nvml.load(stand_in_library)
    except DemoError as error:
        pytest.skip(str(error))
    control = Control.create(tmp_path / "nvml", library)
    monkeypatch.setenv(stand_in_nvml.VARIABLE, str(control.path))
    _forget()
    yield control
    control.release()
    library.stand_in_reset()
    _forget()


def address(handle: Any) -> int | None:
    """What a handle points to, by which two handles can be compared."""
    return ctypes.cast(handle, ctypes.c_void_p).value


def _forget() -> None:
    """What pynvml remembers of a library: its handle, its functions, how often it was begun."""
    pynvml.nvmlLib = None
    pynvml._nvmlGetFunctionPointer_cache.clear()
    pynvml._nvmlLib_refcount = 0
