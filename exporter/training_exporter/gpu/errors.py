# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a call into the driver, by what follows from it."""

from __future__ import annotations

from training_exporter.catalog import OTHER


class NvmlError(Exception):
    """A call that NVML refused.

    Args:
        message: what was asked, and what the driver said.
        code: the nvmlReturn_t.
    """

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class SensorUnsupportedError(NvmlError):
    """This GPU, driver or user cannot have the value; asking again soon is of no use."""


class SensorFailedError(NvmlError):
    """No value this time."""


class GpuUnavailableError(NvmlError):
    """The GPU answers nothing; the others may. `reason` is one of catalog.GPU_FAILURES."""

    def __init__(self, message: str, code: int = 0, reason: str = OTHER) -> None:
        super().__init__(message, code)
        self.reason = reason


class DriverUnavailableError(GpuUnavailableError):
    """No GPU can be asked until NVML is initialised anew."""
