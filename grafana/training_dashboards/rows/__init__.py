# SPDX-License-Identifier: Apache-2.0
"""The rows of the larger dashboards, one file for each."""
