# SPDX-License-Identifier: Apache-2.0
"""GPUs beside the training: which of them this process uses, and what their driver says."""
