# SPDX-License-Identifier: Apache-2.0
"""What was non-finite, first, and why: a report on the step, kept in a file and explained."""
