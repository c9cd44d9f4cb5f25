# SPDX-License-Identifier: Apache-2.0
"""How a run's process begins and ends."""
