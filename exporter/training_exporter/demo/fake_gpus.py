# SPDX-License-Identifier: Apache-2.0
"""GPUs that are not there, so that a laptop has something to show on the GPU panels."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from training_exporter.demo.stand_in_nvml import VARIABLE, Control, build, load

logger = logging.getLogger("training_exporter.demo")


@contextmanager
def fake_gpus(count: int) -> Iterator[None]:
    """While NVML, asked by this process for the first time, has so many stand-in GPUs; 0 is as is.

    Raises:
        DemoError: there is no C compiler, or this process has asked the real NVML already.
    """
    if count == 0:
        yield
        return
    with TemporaryDirectory(prefix="training-exporter-") as folder:
        control = Control.create(Path(folder) / "control", load(build(Path(folder))))
        control.gpu_count = count
        control.move()
        logger.info("%s without hardware: what they report is made up", _stand_ins(count))
        with _environment(VARIABLE, str(control.path)):
            yield


def _stand_ins(count: int) -> str:
    return "1 stand-in GPU" if count == 1 else f"{count} stand-in GPUs"


@contextmanager
def _environment(variable: str, value: str) -> Iterator[None]:
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
