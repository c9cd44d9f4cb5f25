# SPDX-License-Identifier: Apache-2.0
"""Where the time of a run goes, step by step, and how much of it is still to come."""
