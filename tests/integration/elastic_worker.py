# SPDX-License-Identifier: Apache-2.0
"""One rank of a training that dies once and is started again; test_resume.py runs it twice."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch.distributed import destroy_process_group
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from tests.integration.tiny import RecordingExporter, make_trainer
from training_exporter.integrations.huggingface import PrometheusCallback


class Dies(TrainerCallback):
    """Rank 1 is killed in step 25, the first time."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first and os.environ["RANK"] == "1" and state.global_step == 25:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path) -> None:
    exporter = RecordingExporter()
    trainer = make_trainer(
        folder, PrometheusCallback(exporter), Dies(), max_steps=40, save_strategy="steps",
        save_steps=10, per_device_train_batch_size=2, learning_rate=1e-3, ddp_backend="gloo",
    )  # fmt: skip
    output = folder / "tiny-run"
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output) if output.is_dir() else None)
    report = {
        "run": exporter.status.run,
        "rank": exporter.status.rank,
        "restarts": exporter.status.restarts,
        "steps": [signals.step for signals in exporter.steps],
        "anomalies": {a.kind: a.total for a in exporter.snapshot.anomalies if a.total},
        "run_totals": exporter.snapshot.run,
        "failures": exporter.health.resume_failures,
        "errors": exporter.health.errors,
    }
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(report))
    destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # as in ddp_worker.py
