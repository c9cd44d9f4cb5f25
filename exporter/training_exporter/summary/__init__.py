# SPDX-License-Identifier: Apache-2.0
"""What a run was like, in the few numbers that one looks for at its end."""
