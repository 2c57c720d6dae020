"""The dry run: what a job would do, without a file, folder, database or connection being made.

Rules for editing: shows what the frozen plan says, nothing else; secrets are shown by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remote_trainer.cli import documents, out, presets
from remote_trainer.redact import HIDDEN

if TYPE_CHECKING:
    from remote_trainer.service.preview import Transfer
    from remote_trainer.service.submit import Draft, Order


async def show(order: Order, *, as_json: bool) -> None:
    """Check an order and print what would be submitted."""
    from remote_trainer.config import load
    from remote_trainer.service.preview import transfers
    from remote_trainer.service.submit import draft

    checked = await draft(load(), order)
    document = _document(checked, await transfers(checked.recipe, checked.sources))
    if as_json:
        out.document(document)
    else:
        _show(document)


def _document(checked: Draft, shipped: list[Transfer]) -> dict[str, Any]:
    plan, limits = checked.plan, checked.limits
    return {
        "tool": plan.tool,
        "digest": plan.digest,
        "driver": checked.places.first.driver,
        "driver_options": dict(checked.places.first.options),
        "places": documents.places(checked.places.every),
        "parameters": dict(plan.parameters),
        "preset": documents.preset(plan),
        "image": plan.image,
        "expected_hours": plan.expected_hours,
        "resources": {key: getattr(plan.resources, key) for key in ("gpus", "vram_gb", "disk_gb", "ram_gb")},
        "transfers": [{"name": t.name, "source": t.source, "files": t.files, "size": t.size} for t in shipped],
        "health": plan.health,
        "steps": [
            {
                "name": step.name,
                "run": step.run,
                "env": {**step.env, **dict.fromkeys(step.secrets, HIDDEN)},
                "workdir": step.workdir,
                "timeout_s": step.timeout_s,
                "retries": step.retries.max,
            }
            for step in plan.steps
        ],
        "cleanup": plan.cleanup,
        "outputs": [{"name": each.name, "kind": each.kind.value, "glob": each.glob} for each in plan.outputs],
        "limits": {
            "max_hours": limits.max_hours,
            "max_cost_usd": str(limits.max_cost),
            "max_attempts": limits.max_attempts,
        },
    }


def _show(plan: dict[str, Any]) -> None:
    out.line(f"plan {plan['digest'][:16]}: {plan['tool']} on {plan['driver']} {out.settings(plan['driver_options'])}".rstrip())
    wanted = ", ".join(f"{key} {value}" for key, value in plan["resources"].items() if value)
    limits = plan["limits"]
    cap = f"${limits['max_cost_usd']}" if float(limits["max_cost_usd"]) else "no cap"
    for place in plan["places"][1:]:
        out.line(f"or on       {place['driver']} {out.settings(place['driver_options'])}".rstrip())
    out.line(f"limits      {limits['max_hours']:g} h, {cap}, {out.plural(limits['max_attempts'], 'attempt')}")
    facts = (
        ("machines", out.settings(plan["places"][0]["provision"])),
        ("needs", wanted),
        ("image", plan["image"]),
        ("expected", f"{plan['expected_hours']:g} h at speed 1" if plan["expected_hours"] else ""),
    )
    for label, text in facts:
        if text:
            out.line(f"{label:<12}{text}")
    out.line("parameters  " + (out.settings(plan["parameters"]) or "none"))
    presets.explain(plan["preset"])
    for each in plan["transfers"]:
        files = "" if each["files"] is None else f" ({out.plural(each['files'], 'file')}, {out.size(each['size'])})"
        out.line(f"ship        {each['name']}: {each['source']}{files}")
    if plan["health"]:
        _script("health check", plan["health"])
    for number, step in enumerate(plan["steps"], 1):
        _step(number, step)
    if plan["cleanup"]:
        _script("cleanup", plan["cleanup"])
    for each in plan["outputs"]:
        out.line(f"expect      {each['name']} ({each['kind']}): {each['glob']}")
    out.line("nothing was changed; leave --dry-run out to run it")


def _step(number: int, step: dict[str, Any]) -> None:
    timeout = f", at most {out.duration(step['timeout_s'])}" if step["timeout_s"] else ""
    retries = f", {out.plural(step['retries'], 'retry').replace('retrys', 'retries')}" if step["retries"] else ""
    _script(f"step {number}: {step['name']} in {step['workdir']}{timeout}{retries}", step["run"])
    for key, value in step["env"].items():
        out.line(f"    {key}={value}")


def _script(title: str, text: str) -> None:
    out.line(title)
    for each in text.rstrip().splitlines():
        out.line(f"  | {each}" if each.strip() else "  |")
