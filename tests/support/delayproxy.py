"""The slow, narrow or broken link for tests; it is shipped, so that authors of drivers can use it too."""

from __future__ import annotations

from remote_trainer.testing.netfault import Link

__all__ = ["Link"]
