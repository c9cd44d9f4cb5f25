# SPDX-License-Identifier: Apache-2.0
"""Which of a run's processes this one is, and what it does for that reason.

All of it is read from the environment that the launcher made: no process asks another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

HIGHEST_PORT: Final = 65535
_MOST_DIGITS: Final = 9


class Placement(NamedTuple):
    """The place of a process in its run.

    Attributes:
        rank: its number among all processes of the run, from 0.
        local_rank: its number among those of its node, from 0; 0 too where the launcher does not
            say, since one that does not gives each process a machine or a container of its own.
        node: the number of its node, from 0; None when that is unknown.
        world_size: how many processes there are; None when that is unknown.
    """

    rank: int = 0
    local_rank: int = 0
    node: int | None = None
    world_size: int | None = None


ALONE: Final = Placement(0, 0, 0, 1)


class _Launcher(NamedTuple):
    """Names of the variables in which a launcher says where a process is, "" for none."""

    rank: str
    local_rank: str
    node: str
    world_size: str
    needs_world_size: bool = False


_LAUNCHERS: Final = (
    # torchrun, accelerate, DeepSpeed, Kubeflow. First, since it is what PyTorch itself goes by, and
    # since torchrun is often started by one of the others, who then have counted torchruns.
    _Launcher("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE"),
    # Before Slurm, whose variables mpirun hands down as it found them. Its ..._NODE_RANK is not
    # the number of a node, but that of the process on the node among those of all jobs.
    _Launcher(
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "", "OMPI_COMM_WORLD_SIZE"
    ),
    # An sbatch script has SLURM_PROCID=0 and SLURM_NTASKS, and so has all that it starts by itself.
    # Only what srun starts has a number of tasks of its step.
    _Launcher(
        "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS",
        needs_world_size=True,
    ),
)  # fmt: skip


def placement(environ: Mapping[str, str]) -> Placement:
    """Where the launcher has put this process; alone where there is none.

    A launcher whose numbers make no sense is passed over for the next one.
    """
    for launcher in _LAUNCHERS:
        found = _placement_by(launcher, environ)
        if found is not None:
            return found
    return ALONE


def _placement_by(launcher: _Launcher, environ: Mapping[str, str]) -> Placement | None:
    said = [environ.get(name, "").strip() for name in launcher[:4]]
    if any(text and whole_number(text) is None for text in said):
        return None
    rank, local_rank, node, world_size = map(whole_number, said)
    if rank is None or (world_size is None and launcher.needs_world_size):
        return None
    if world_size is not None and rank >= world_size:
        return None
    return Placement(rank, local_rank or 0, node, world_size)


def whole_number(text: str) -> int | None:
    """The number that a text is, None when it is none from 0 on."""
    is_one = text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS
    return int(text) if is_one else None


def serves(policy: str, where: Placement) -> bool:
    """Whether a process serves a page.

    Args:
        policy: one of config.RANK_POLICIES: "all", "local_zero" or "zero".
        where: the process.
    """
    if policy == "zero":
        return where.rank == 0
    return policy == "all" or where.local_rank == 0


def first_port(port: int, where: Placement) -> int:
    """The port for a process to try first, so that which rank has which port does not depend on who
    comes first.

    Args:
        port: that of the first process on a node; 0 is any free one.
        where: the process.
    """
    return port if port == 0 else min(port + where.local_rank, HIGHEST_PORT)
