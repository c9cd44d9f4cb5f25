# SPDX-License-Identifier: Apache-2.0
"""One module per training framework; each turns what its framework does into StepSignals."""
