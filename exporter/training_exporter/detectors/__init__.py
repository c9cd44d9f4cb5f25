# SPDX-License-Identifier: Apache-2.0
"""The detectors, one kind of anomaly per file, and the two lists of them.

`textbook` is the published formulas as they stand; `robust` is what real training logs favour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from typing import Final, TypeAlias

from training_exporter.detectors.base import (
    HEALTHY,
    WARMING_UP,
    Detector,
    EvaluationDetector,
    Finding,
    Quiet,
    StatefulDetector,
    Verdict,
)
from training_exporter.detectors.clipping_excess import ClippingExcess
from training_exporter.detectors.divergence import RobustDivergence
from training_exporter.detectors.eval_gap import EvalGap
from training_exporter.detectors.gradient_explosion import (
    RobustGradientExplosion,
    TextbookGradientExplosion,
)
from training_exporter.detectors.gradient_vanishing import (
    RobustGradientVanishing,
    TextbookGradientVanishing,
)
from training_exporter.detectors.learning_rate_anomaly import LearningRateAnomaly
from training_exporter.detectors.loss_oscillation import LossOscillation
from training_exporter.detectors.loss_plateau import RobustLossPlateau, TextbookLossPlateau
from training_exporter.detectors.loss_spike import RobustLossSpike, TextbookLossSpike
from training_exporter.detectors.memory_growth import MemoryGrowth
from training_exporter.detectors.non_finite import NonFinite
from training_exporter.detectors.restart import Restart
from training_exporter.detectors.resume_jump import RobustResumeJump, TextbookResumeJump
from training_exporter.detectors.throughput_drop import ThroughputDrop

__all__ = [
    "HEALTHY",
    "PROFILES",
    "WARMING_UP",
    "ClippingExcess",
    "Detector",
    "EvalGap",
    "EvaluationDetector",
    "Finding",
    "LearningRateAnomaly",
    "LossOscillation",
    "MemoryGrowth",
    "NonFinite",
    "Options",
    "Quiet",
    "Restart",
    "RobustDivergence",
    "RobustGradientExplosion",
    "RobustGradientVanishing",
    "RobustLossPlateau",
    "RobustLossSpike",
    "RobustResumeJump",
    "StatefulDetector",
    "TextbookGradientExplosion",
    "TextbookGradientVanishing",
    "TextbookLossPlateau",
    "TextbookLossSpike",
    "TextbookResumeJump",
    "ThroughputDrop",
    "Verdict",
    "build_detectors",
    "robust_detectors",
    "textbook_detectors",
]

Options: TypeAlias = Mapping[str, Mapping[str, float]]
"""Constructor keywords by kind of anomaly."""

_ROBUST: Final = (
    Restart,
    NonFinite,
    RobustLossSpike,
    RobustDivergence,
    RobustLossPlateau,
    LossOscillation,
    RobustGradientExplosion,
    RobustGradientVanishing,
    ClippingExcess,
    EvalGap,
    LearningRateAnomaly,
    MemoryGrowth,
    ThroughputDrop,
    RobustResumeJump,
)
_TEXTBOOK: Final = (
    Restart,
    NonFinite,
    TextbookLossSpike,
    TextbookLossPlateau,
    LossOscillation,
    TextbookGradientExplosion,
    TextbookGradientVanishing,
    ClippingExcess,
    EvalGap,
    LearningRateAnomaly,
    MemoryGrowth,
    ThroughputDrop,
    TextbookResumeJump,
)


def robust_detectors(options: Options | None = None) -> list[Detector]:
    """The default: every kind, judged in the way that real training logs favour.

    Raises:
        ValueError: a kind, an option or a value that is not valid, naming those that are.
    """
    return _build(_ROBUST, options or {})


def textbook_detectors(options: Options | None = None) -> list[Detector]:
    """Every kind that has a published formula, judged by it.

    Raises:
        ValueError: as for `robust_detectors`.
    """
    return _build(_TEXTBOOK, options or {})


PROFILES: Final[Mapping[str, Callable[[Options | None], list[Detector]]]] = {
    "robust": robust_detectors,
    "textbook": textbook_detectors,
}


def build_detectors(profile: str, options: Options | None = None) -> list[Detector]:
    """The detectors of a profile, with its options.

    Raises:
        ValueError: an unknown profile, or as for `robust_detectors`.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; valid are {', '.join(PROFILES)}")
    return PROFILES[profile](options)


def _build(classes: Iterable[Callable[..., Detector]], options: Options) -> list[Detector]:
    by_kind = {cls.kind: cls for cls in classes}  # type: ignore[attr-defined]
    for kind in options:
        if kind not in by_kind:
            raise ValueError(
                f"this profile has no detector of {kind!r}; it has {', '.join(by_kind)}"
            )
    return [_construct(kind, cls, options.get(kind, {})) for kind, cls in by_kind.items()]


def _construct(kind: str, cls: Callable[..., Detector], keywords: Mapping[str, float]) -> Detector:
    valid = signature(cls).parameters
    for name in keywords:
        if name not in valid:
            known = ", ".join(valid) or "none"
            raise ValueError(f"unknown option {name!r} of {kind}; valid are {known}")
    try:
        return cls(**keywords)
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from None
