# SPDX-License-Identifier: Apache-2.0
"""A stand-in for NVIDIA's management library, for machines without its GPUs.

Written in C, compiled when it is needed and found by pynvml as if it were the driver's own, so that
all of the way from a sensor to a metric is the real one, but for the sensor.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from training_exporter.demo.plan import DemoError
from training_exporter.demo.stand_in_nvml.control import VARIABLE, Control

__all__ = ["VARIABLE", "Control", "build", "load"]

SONAME = "libnvidia-ml.so.1"
SOURCES = Path(__file__).parent
FLAGS = ("-std=c11", "-Wall", "-Wextra", "-O1", "-shared", "-fPIC", "-fvisibility=hidden")
COMPILE_SECONDS = 120


def build(folder: Path) -> Path:
    """Compile the library into a folder, with `$CC` or `cc`.

    Raises:
        DemoError: there is no C compiler, or it fails.
    """
    library = folder / SONAME
    sources = [str(source) for source in sorted(SOURCES.glob("*.c"))]
    command = [*compiler(), *FLAGS, f"-Wl,-soname,{SONAME}", "-o", str(library), *sources]
    done = subprocess.run(  # noqa: S603 - nothing from outside gets in here but $CC
        command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
    )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        raise DemoError(f"{command[0]} cannot compile the stand-in NVML: {(errors or ['?'])[0]}")
    return library


def compiler() -> list[str]:
    """The C compiler, with the arguments that `$CC` gives it.

    Raises:
        DemoError: there is none.
    """
    chosen = shlex.split(os.environ.get("CC", ""))
    for words in [chosen] if chosen else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(words[0]):
            return words
    raise DemoError(
        f"GPUs without hardware need a C compiler, and there is no {chosen[0] if chosen else 'cc'}:"
        " install gcc or clang (apt-get install gcc), or name one in $CC"
    )


def load(library: Path) -> ctypes.CDLL:
    """Make pynvml in this process use the library.

    The dynamic linker looks for a name among the libraries that are loaded before it looks at any
    disk, so that pynvml's own `CDLL("libnvidia-ml.so.1")` finds this one by its SONAME.

    Raises:
        DemoError: the real one is in use already.
    """
    if not loaded():
        ctypes.CDLL(str(library))
    found = ctypes.CDLL(SONAME)
    if not hasattr(found, "stand_in_defaults"):
        raise DemoError(f"this process uses NVIDIA's own {SONAME} already")
    return found


def loaded() -> set[Path]:
    """The NVML libraries that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    fields = (line.split(maxsplit=5) for line in lines)
    paths = {Path(line[5].removesuffix(" (deleted)")) for line in fields if len(line) == 6}
    return {path for path in paths if path.name.startswith("libnvidia-ml.so")}
