# SPDX-License-Identifier: Apache-2.0
"""One rank of a data-parallel training on the CPU; test_ddp.py starts it twice."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from torch.distributed import destroy_process_group
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from tests.integration.tiny import RecordingExporter, make_trainer, step_logs
from training_exporter.integrations.huggingface import PrometheusCallback


class Collectives(TorchDispatchMode):
    """Counts collective operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace in {"c10d", "_c10d_functional"}:
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def train(folder: Path, *callbacks: TrainerCallback) -> tuple[Any, dict[str, int]]:
    trainer = make_trainer(
        folder, *callbacks, gradient_accumulation_steps=2, max_steps=3,
        per_device_train_batch_size=2, ddp_backend="gloo",
    )  # fmt: skip
    with Collectives() as collectives:
        trainer.train()
    return trainer, collectives.counts


def main(folder: Path, port: int) -> None:
    exporter = RecordingExporter(serve=True, address="127.0.0.1", port=port, port_tries=8)
    trainer, with_us = train(folder, PrometheusCallback(exporter))
    served = exporter.port
    with urlopen(f"http://127.0.0.1:{served}/metrics", timeout=10) as response:
        page = response.read().decode()
    exporter.close()
    _, without = train(folder)
    report = {
        "rank": exporter.status.rank,
        "port": served,
        "page": page,
        "losses": [signals.loss for signals in exporter.steps],
        "grad_norms": [signals.grad_norm for signals in exporter.steps],
        "logged": step_logs(trainer),
        "collectives": [with_us, without],
        "errors": exporter.health.errors,
    }
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(report))
    destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    # Past the interpreter's own end: there gloo's thread, when it frees the tensors of the last
    # gather too late, aborts the process (std::terminate out of pthread_exit).
    os._exit(0)
