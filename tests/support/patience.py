"""How long a test waits before it takes what it waits for as hung.

Rules for editing: a bound for what hangs, never a statement about how long something takes: a busy machine of two cores needs a tenth
of it at most, and so does one on which any process stands still for some seconds. Pytest's own time-out lies above it.
"""

from __future__ import annotations

PATIENCE_S = 300.0
