# SPDX-License-Identifier: Apache-2.0
"""The evaluations of a Trainer, whoever starts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from training_exporter import catalog
from training_exporter.exporter import TrainingExporter


class Evaluations:
    """Gets around `Trainer.evaluate`, and tells the exporter what came out.

    Args:
        exporter: takes the results.
    """

    def __init__(self, exporter: TrainingExporter) -> None:
        self._exporter = exporter
        self._open = 0
        self._reported = 0
        self._logs: dict[str, object] = {}
        self._step: int | None = None

    def start(self) -> None:
        """A training begins: an evaluation that did not end is over."""
        self._open = 0

    def take_log(self, logs: Mapping[str, object], step: int) -> bool:
        """Take what is logged at a step; False, and nothing, unless it comes from an evaluation."""
        if self._open:
            self._logs.update(logs)
            self._step = step
        return self._open > 0

    def around(self, evaluate: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Evaluate. Raises only what that does."""
        self._logs = {}
        reported = self._reported
        self._open += 1
        try:
            with self._exporter.paused(catalog.EVALUATION):
                results = evaluate(*args, **kwargs)
        finally:
            self._open -= 1
        with self._exporter.boundary.at(catalog.EVALUATION_ERROR):
            if self._reported == reported:  # else it went over sets, each reported
                prefix = kwargs.get("metric_key_prefix", args[2] if len(args) > 2 else "eval")
                self._report(prefix, {**self._logs, **(results or {})})
        return results

    def _report(self, prefix: str, results: Mapping[str, object]) -> None:
        self._reported += 1
        own = {
            name.removeprefix(f"{prefix}_"): value
            for name, value in results.items()
            if name != "epoch"
        }
        self._exporter.observe_evaluation(
            own, dataset=prefix.removeprefix("eval_"), step=self._step
        )
