"""The script a step becomes on the host: where things are, the step's own environment, then its text. Pure.

Rules for editing: paths are known only on the host, so they are shell variables made here; every value that comes from a plan is quoted.
No secret passes through here: the supervisor brings those in from a file that is removed when read.
"""

from __future__ import annotations

import shlex

from remote_trainer.model import Attempt, Job, PlannedStep, StepRun


def step_script(job: Job, attempt: Attempt, step: PlannedStep, run: StepRun) -> str:
    """Return the POSIX sh text of one step run. ``RT_ROOT``, ``RT_WORK``, ``RT_JOB`` and ``RT_STEP`` are the supervisor's."""
    lines = [
        "set -eu",
        'RT_OUTPUT="$RT_WORK/output"',
        f'RT_METRICS="$RT_WORK/{_inside(job.plan.metrics_file)}"',
        *(f'RT_INPUT_{given.name.upper()}="$RT_ROOT/data/{given.digest}/tree"' for given in job.inputs),
        *(f'RT_{given.name.upper()}="$RT_INPUT_{given.name.upper()}"' for given in job.inputs),
        *_models(job),
        f"RT_ATTEMPT={attempt.number} RT_TRY={run.number}",
        "export RT_OUTPUT RT_METRICS RT_ATTEMPT RT_TRY",
        *(f"export RT_INPUT_{given.name.upper()} RT_{given.name.upper()}" for given in job.inputs),
        'mkdir -p "$RT_OUTPUT"',
        *(f"export {name}={shlex.quote(value)}" for name, value in sorted(step.env.items())),
        f'mkdir -p "$RT_WORK/{_inside(step.workdir)}"',
        f'cd "$RT_WORK/{_inside(step.workdir)}"',
        step.run,
    ]
    return "\n".join(lines) + "\n"


def _models(job: Job) -> list[str]:
    """Name the models that the steps fetch, and let all jobs of the host share what they fetch, unless the host keeps it elsewhere."""
    if not job.plan.models:
        return []
    lines = [f"export RT_{model.input.upper()}={shlex.quote(str(model))}" for model in job.plan.models]
    folders = [f'"${{HOME:-/}}/.cache/huggingface/hub/models--{model.name.replace("/", "--")}"' for model in job.plan.models]
    elsewhere = " || ".join(['[ -n "${HF_HUB_CACHE:-}${HF_HOME:-}" ]', *(f"[ -d {folder} ]" for folder in folders)])
    lines.append(f'{elsewhere} || export HF_HUB_CACHE="$RT_ROOT/hub"')
    endpoints = {model.endpoint for model in job.plan.models if model.endpoint}
    return lines + [f'export HF_ENDPOINT="${{HF_ENDPOINT:-{_inside(endpoint)}}}"' for endpoint in endpoints]


def _inside(path: str) -> str:
    """Return a relative path made safe between double quotes."""
    return "".join(f"\\{char}" if char in '"$`\\' else char for char in path)
