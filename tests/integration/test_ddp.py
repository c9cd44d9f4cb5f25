# SPDX-License-Identifier: Apache-2.0
"""Two processes that train one model together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.e2e
def test_two_ranks(tmp_path: Path) -> None:
    """Each rank has a page and a label of its own and its own share of the loss, the mean of which
    is what the Trainer logs; and no rank waits for another on our account."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]

    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
            str(Path(__file__).parent / "ddp_worker.py"), str(tmp_path), str(port),
        ],
        cwd=ROOT, timeout=120, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]

    assert [report["rank"] for report in ranks] == [0, 1]
    assert ranks[0]["port"] != ranks[1]["port"]
    for rank, report in enumerate(ranks):
        assert f'rank="{rank}"' in report["page"]
        assert f'rank="{1 - rank}"' not in report["page"]
        assert 'world_size="2"' in report["page"]
        assert f'local_rank="{rank}",model=' in report["page"]
        assert 'node="0"' in report["page"]
        with_us, without = report["collectives"]
        assert with_us == without != {}
        assert not any(report["errors"].values())
    logged = ranks[0]["logged"]
    assert ranks[0]["losses"] != ranks[1]["losses"]
    assert [fmean(losses) for losses in zip(*(r["losses"] for r in ranks), strict=True)] == (
        pytest.approx([entry["loss"] for entry in logged], rel=1e-5)
    )
    for report in ranks:
        assert report["grad_norms"] == pytest.approx(
            [entry["grad_norm"] for entry in logged], rel=1e-5
        )
