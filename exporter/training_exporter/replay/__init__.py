# SPDX-License-Identifier: Apache-2.0
"""Past runs: read from the logs that they left, and judged by the same monitor as a live one."""
