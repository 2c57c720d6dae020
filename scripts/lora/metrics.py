"""The numbers of a training, as they come: a JSON object a line in metrics.jsonl, and the same for TensorBoard.

Editing rules: a resumed training may repeat lines behind its checkpoint, with the same values; nothing here is read back.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from lora.options import Options

FOLDER = "tensorboard"


class Metrics:
    """Where the numbers of one process go; the first rank alone has one that writes."""

    def __init__(self, options: Options, writes: bool) -> None:
        self._path, self._folder = options.metrics_path, options.output_dir / FOLDER
        self._writes, self._board = writes, writes and options.tensorboard
        self._writer: Any = None
        if self._board and importlib.util.find_spec("tensorboardX") is None:
            print("note: there will be no files for TensorBoard, for the package tensorboardX is missing", flush=True)
            self._board = False

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of a step, and make sure that they can be read at once."""
        if not self._writes:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        entry = {"step": step, **values, "time": datetime.now(UTC).isoformat(timespec="milliseconds")}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self._board:
            self._show(step, values)

    def _show(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # Steps behind the one that a training resumed at are taken back: they come again.
            self._writer = SummaryWriter(str(self._folder), purge_step=step, max_queue=1)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
