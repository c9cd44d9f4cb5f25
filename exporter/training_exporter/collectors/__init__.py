# SPDX-License-Identifier: Apache-2.0
"""What the scrape reads. Each collector renders readings that already lie ready."""
