# SPDX-License-Identifier: Apache-2.0
"""Errors stop at three boundaries: the step, the scrape and the thread that samples GPUs.

Any other place that catches everything is named, with why.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import training_exporter

PACKAGE = Path(training_exporter.__file__).parent

BROAD = {
    "sinks/worker.py": "nobody is above it in its thread, and users' sinks are in it",
    "watching.py": "observe: the step's boundary, written out because it is the hot path",
    "collectors/guard.py": "the scrape's boundary",
    "gpu/nvml.py": "what pynvml, or a stranger of that name, stumbles over costs one sensor",
    "gpu/watch.py": "the sampler's boundary: nobody is above it in its thread",
    "lifecycle/push.py": "nobody is above it in its thread, and users' collectors are in it",
    "integrations/nan_reports.py": "nobody is above it in its thread; the training's reports it",
    "panel.py": "a detector that raises is retired; the step is done to its end, then raises",
    "web/app.py": "the scrape's boundary at the server: a page that fails is a 500",
}


def catches_everything(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    names = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(getattr(name, "id", "") in {"Exception", "BaseException"} for name in names)


def reraises(handler: ast.ExceptHandler) -> bool:
    return any(isinstance(node, ast.Raise) and node.exc is None for node in ast.walk(handler))


def broad_handlers() -> Iterator[str]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.ExceptHandler)
                and catches_everything(node)
                and not reraises(node)
            ):
                yield path.relative_to(PACKAGE).as_posix()


def test_every_broad_except_is_known() -> None:
    """Another boundary would hide errors where nobody counts them."""
    assert sorted(set(broad_handlers())) == sorted(BROAD)
