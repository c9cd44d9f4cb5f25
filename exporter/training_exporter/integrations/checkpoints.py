# SPDX-License-Identifier: Apache-2.0
"""What is saved beside the checkpoints of a Trainer, and read when it goes on from one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from training_exporter import catalog
from training_exporter.exporter import TrainingExporter
from training_exporter.lifecycle.resume import read_state


class Checkpoints:
    """Keeps our own file in each checkpoint, so that the Trainer knows nothing of it.

    Never an ExportableState: a run resumed from a checkpoint made without one dies at its next
    save. Raises nothing.
    """

    def __init__(self, exporter: TrainingExporter) -> None:
        self._exporter = exporter
        self._given: Path | None = None

    def training_with(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Note from which folder `train` is told to go on, by what it is called with."""
        given = kwargs.get("resume_from_checkpoint", args[0] if args else None)
        # True is the newest checkpoint, the name of which follows from its step.
        self._given = Path(given) if isinstance(given, str | os.PathLike) else None

    def save(self, args: TrainingArguments, state: TrainerState) -> None:
        """Add our file to the checkpoint that was saved, on the rank that saves such things."""
        if not self._exporter.config.resume_state or not args.should_save:
            return
        if state.is_hyper_param_search:  # whose trials have folders of their own
            return
        folder = _folder(args, state)
        with self._exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            if folder.is_dir():  # else this Trainer keeps its checkpoints elsewhere
                self._exporter.resumption.save(folder, state.global_step)

    def begin(self, args: TrainingArguments, state: TrainerState) -> None:
        """The training begins; take over what lies in the checkpoint, if it goes on from one."""
        if not self._exporter.config.resume_state or state.global_step == 0:
            return
        load = partial(read_state, self._given or _folder(args, state))
        with self._exporter.boundary.at(catalog.LIFECYCLE_ERROR):
            self._exporter.resumption.go_on(load, state.global_step)


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
