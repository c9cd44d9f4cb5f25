# SPDX-License-Identifier: Apache-2.0
"""A small real training run with real faults in it, to see what the exporter makes of them."""
