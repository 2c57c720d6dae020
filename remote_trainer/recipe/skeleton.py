"""A new tool to begin with: a small recipe that runs as it is.

Rules for editing: what is written must pass validation and run on any machine; a test does both.
"""

from __future__ import annotations

import re
from pathlib import Path

from remote_trainer.errors import Conflict, UsageError

_RECIPE = """\
# Check with `remote-trainer tools validate {folder}`; every field is explained in docs/tools.md.
name: {name}
version: 1
description: Says what it does in a sentence

parameters:
  greeting: {{type: string, default: hello, description: What is said}}
  times: {{type: integer, default: 3, minimum: 1, maximum: 1000, description: How often}}

inputs:
  dataset: {{description: Any files}}

steps:
  - name: work
    timeout_s: 3600
    run: |
      # Values are quoted for the shell already: write them without quotes around.
      total={{{{ times }}}}
      number=1
      while [ "$number" -le "$total" ]; do
        echo "step $number/$total:" {{{{ greeting }}}}
        number=$((number + 1))
      done
      echo {{{{ greeting }}}} >"$RT_OUTPUT/result.txt"

patterns:
  - {{kind: progress, regex: '^step (?P<step>\\d+)/(?P<total>\\d+):'}}

outputs:
  - {{name: result, kind: final, glob: result.txt}}
"""


def write_skeleton(tools: Path, name: str) -> Path:
    """Write ``<tools>/<name>/1/tool.yaml`` and return it. UsageError for a bad name, Conflict if the tool is there."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > 40:
        raise UsageError(f"{name!r} is no name for a tool: use lower-case words joined by hyphens")
    folder = tools / name / "1"
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise Conflict(f"{folder} is there already; choose another name, or copy it to {tools / name / '2'}") from error
    file = folder / "tool.yaml"
    file.write_text(_RECIPE.format(name=name, folder=folder), encoding="utf-8")
    return file
