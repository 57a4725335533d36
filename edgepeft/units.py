"""Units that reports, budgets and measurements share."""

from __future__ import annotations

#: One megabyte everywhere in edgepeft, in bytes: files and resident memory alike.
MB = 1_000_000
