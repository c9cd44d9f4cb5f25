# SPDX-License-Identifier: Apache-2.0
"""Where a non-finite step came from, as far as the numbers tell: the label `source`."""

from __future__ import annotations

from training_exporter.catalog import (
    SOURCE_GRADIENTS,
    SOURCE_INPUTS,
    SOURCE_LOSS,
    SOURCE_LOSS_SCALE,
    SOURCE_PARAMETERS,
)
from training_exporter.forensics.report import Report, broken


def source_of(report: Report) -> str:
    """The value of the label `source`: the earliest on the way of the data that is known."""
    if report.inputs is not None and report.inputs.bad:
        return SOURCE_INPUTS
    if parameters_were_broken(report):
        return SOURCE_PARAMETERS
    if broken(report.loss):
        return SOURCE_LOSS
    return SOURCE_GRADIENTS if report.loss_scale is None else SOURCE_LOSS_SCALE


def parameters_were_broken(report: Report) -> bool:
    """Whether the weights are known to have been non-finite before this step's update.

    Weights that were looked at after the update say nothing: a NaN gradient makes them NaN.
    Only where the step before was non-finite and was not skipped, they were broken by that one.
    """
    seen = report.parameters
    if seen is None or not seen.bad:
        return False
    if seen.step < report.step or (seen.step == report.step and seen.before_update):
        return True
    if seen.step == report.step and report.skipped:
        return True
    return bool(report.before) and report.before[-1].broke_weights
