# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from tests.unit.gpu.stand_in import nvml, stand_in_library

__all__ = ["nvml", "stand_in_library"]
