# SPDX-License-Identifier: Apache-2.0
"""What a summary says of a run, in numbers."""

from __future__ import annotations

import json
from math import inf, nan
from types import MappingProxyType

from training_exporter.detectors import robust_detectors
from training_exporter.gpu.readings import AllocatorReading
from training_exporter.monitor import TrainingMonitor
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.snapshot import Anomaly, AnomalyStatus, Snapshot
from training_exporter.status import RunStatus
from training_exporter.summary.making import KindFound, summarise, summary_json

STATUS = RunStatus("tiny", 0, "completed", pauses={"evaluation": 5.0, "saving": 0.0})


def after(*losses: float, **fields: float) -> Snapshot:
    """The state after steps of these losses, one a second."""
    monitor = TrainingMonitor(robust_detectors())
    for step, loss in enumerate(losses, 1):
        monitor.observe(StepSignals(step, 100.0 + step, loss=loss, step_seconds=1.0, **fields))
    return monitor.snapshot


def test_final_and_best_loss() -> None:
    """The last loss as it was, the lowest one with its step."""
    summary = summarise(STATUS, after(3.0, 1.0, 2.0, nan))

    assert summary.loss is not None
    assert summary.loss != summary.loss  # NaN
    assert summary.best == (1.0, 2)
    assert summary.step == summary.steps == 4
    assert summary.non_finite_steps == {"loss": 1}


def test_what_is_not_known_is_not_there() -> None:
    """A run without tokens, thresholds or evaluations has no zeros in their place."""
    summary = summarise(STATUS, after(1.0))

    assert summary.tokens is summary.tokens_per_second is summary.clip_ratio is None
    assert summary.eval_loss == summary.peak_memory_bytes == summary.non_finite_steps == {}
    assert summary.anomalies == ()


def test_a_run_without_a_step() -> None:
    """It has a summary all the same, which claims nothing."""
    summary = summarise(RunStatus("tiny", 0, "crashed"), TrainingMonitor([]).snapshot)

    assert summary.loss is summary.step is summary.best is summary.overhead_ratio is None


def test_time_and_throughput() -> None:
    """Rates are over training and waiting for data, shares over pauses too."""
    snapshot = after(1.0, 1.0, tokens=30.0, data_wait_seconds=0.5)

    summary = summarise(STATUS, snapshot, overhead={"step": 0.1, "observe": 0.06, "scrape": 9.0})

    assert summary.seconds == {"steps": 2.0, "data_wait": 1.0, "evaluation": 5.0}
    assert summary.total_seconds == 8.0
    assert summary.tokens_per_second == 20.0
    assert summary.overhead_ratio == 0.02


def test_clip_ratio_is_that_of_the_run() -> None:
    """Clipped steps among all, 0 where a threshold was never reached."""
    assert summarise(STATUS, after(1.0, grad_norm=2.0, clip_threshold=1.0)).clip_ratio == 1.0
    assert summarise(STATUS, after(1.0, grad_norm=0.5, clip_threshold=1.0)).clip_ratio == 0.0


def test_anomalies_by_kind_with_their_steps() -> None:
    """As many steps as are remembered; the count knows of all."""
    snapshot = after(1.0)._replace(
        anomalies=(
            AnomalyStatus("loss_spike", True, False, 5, 9, 109.0, 1.0, 1.0),
            AnomalyStatus("eval_gap", True, False, 0, None, None, None, None),
        ),
        recent=(
            Anomaly("loss_spike", 7, 107.0, 1.0, 1.0),
            Anomaly("restart", 8, 108.0, 1.0, 1.0),
            Anomaly("loss_spike", 9, 109.0, 1.0, 1.0),
        ),
    )

    assert summarise(STATUS, snapshot).anomalies == (KindFound("loss_spike", 5, (7, 9)),)


def test_evaluations_and_memory() -> None:
    """The last loss of each data set, the peak of each device."""
    snapshot = after(1.0)._replace(
        evaluations={"wiki": Evaluation(1, 101.0, "wiki", 2.5), "qa": Evaluation(1, 101.0, "qa")}
    )
    memory = (AllocatorReading(0, allocated_peak_bytes=8.0), AllocatorReading(1))

    summary = summarise(STATUS, snapshot, memory)

    assert summary.eval_loss == {"wiki": 2.5}
    assert summary.peak_memory_bytes == {"0": 8.0}


def test_other_results_of_an_evaluation() -> None:
    """By data set, in the file; one that has none is not there."""
    snapshot = after(1.0)._replace(
        evaluations={
            "wiki": Evaluation(1, 101.0, "wiki", 2.5, MappingProxyType({"f1": 0.5, "bleu": nan})),
            "qa": Evaluation(1, 101.0, "qa", 3.0),
        }
    )

    values = json.loads(summary_json(summarise(STATUS, snapshot)))

    assert values["eval_metrics"] == {"wiki": {"f1": 0.5, "bleu": "NaN"}}


def test_steps_before_a_checkpoint() -> None:
    """What this process took, and what went into the weights."""
    monitor = TrainingMonitor([])
    monitor.load_levels({"run": {"steps": 60.0}})
    monitor.observe(StepSignals(61, 100.0, loss=1.0))

    summary = summarise(STATUS, monitor.snapshot)

    assert (summary.steps, summary.steps_in_weights) == (1.0, 61.0)


def test_the_reason_is_that_of_a_failure() -> None:
    """A run that crashed may go on, and complete."""
    crashed = STATUS.crashed_by(ValueError("too bad"))

    assert summarise(crashed, after(1.0)).reason == "too bad"
    went_on = crashed._replace(state="completed", failure=None)
    assert summarise(went_on, after(1.0)).reason is None


def test_json_is_strict() -> None:
    """NaN and infinities are texts, the rest are numbers and objects by name."""
    text = summary_json(summarise(STATUS, after(1.0, inf)))

    values = json.loads(text, parse_constant=lambda name: 1 / 0)
    assert values["loss"] == "Infinity"
    assert values["best"] == {"loss": 1.0, "step": 1}
    assert values["anomalies"] == [{"kind": "non_finite", "total": 1, "steps": [2]}]
    assert values["schema_version"] == 1
