# SPDX-License-Identifier: Apache-2.0
"""The audit finds what waits for a device, and says where."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.sync_audit import SyncAudit

VALUES = torch.tensor([1.0, 2.0, 0.0])
MASK = torch.tensor([True, False, True])


@pytest.mark.parametrize(
    "syncing",
    [
        lambda: VALUES[0].item(),
        lambda: float(VALUES[0]),
        lambda: bool(VALUES[0]),
        lambda: f"{VALUES[0]}",
        lambda: VALUES.isnan().any().item(),
        lambda: VALUES.nonzero(),
        lambda: VALUES[MASK],
        lambda: VALUES.clone().__setitem__(MASK, VALUES[:2]),
        lambda: VALUES.masked_select(MASK),
        lambda: torch.equal(VALUES, VALUES),
        lambda: torch.allclose(VALUES, VALUES),
        lambda: VALUES.unique(),
    ],
)
def test_a_planted_sync_is_found(syncing: Callable[[], object]) -> None:
    """Once, by operation and by the line of the caller, not by a line of torch."""
    with SyncAudit() as audit:
        syncing()

    assert [sync.file for sync in audit.syncs] == [__file__]
    assert audit.syncs[0].line == syncing.__code__.co_firstlineno
    assert audit.in_file("test_sync_audit") == audit.syncs


def test_work_on_the_device_is_none() -> None:
    """Arithmetic, slicing and indexing by number stay silent."""
    with SyncAudit() as audit:
        (VALUES * 2 + 1).sum()
        VALUES[0]
        VALUES[torch.tensor([0, 2])]
        torch.where(MASK, VALUES, 0.0)

    assert audit.syncs == []


def test_a_sync_reads_well() -> None:
    """A failed assertion names the operation and the place."""
    with SyncAudit() as audit:
        VALUES[0].item()

    assert str(audit.syncs[0]).startswith(f"_local_scalar_dense at {__file__}:")
