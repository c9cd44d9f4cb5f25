# SPDX-License-Identifier: Apache-2.0
"""Dates in logs and options."""

from __future__ import annotations

from datetime import datetime, timezone


def unix_time(text: str) -> float | None:
    """Unix time of a date such as 2026-01-31T10:00, UTC unless it says another zone, or of a number
    of seconds; None where it is neither."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        # Python 3.10 knows no Z.
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
