# SPDX-License-Identifier: Apache-2.0
"""How many classes the labels of a model may name."""

from __future__ import annotations

from typing import Any


def classes_of(model: Any) -> int | None:
    """How many classes the labels of a model may name, None where it does not say.

    That of a language model is the width of its last layer; `vocab_size` is not always that.
    """
    config = getattr(model, "config", None)
    kind = type(model).__name__
    if kind.endswith("Classification") and getattr(config, "problem_type", None) in (
        None,
        "single_label_classification",
    ):
        number = getattr(config, "num_labels", None)
        return number if isinstance(number, int) and number > 1 else None
    try:
        head = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):  # there is none, as some models say
        return None
    width = getattr(head, "out_features", None)
    return width if isinstance(width, int) else None
