# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def light_on_the_machine() -> Iterator[None]:
    """One thread: models this small are slower with several, and far slower on a busy machine.

    What is imported by now is kept from the garbage collector, which the Trainer calls at the start
    of each training and which would take longer than the training itself.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)
