"""``run-training``: one job from the command line to its artifacts.

Rules for editing: the function's arguments are the documented options (docs/cli.md; a test compares); what they mean is the service's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from remote_trainer.cli import documents, guard, options, out, session
from remote_trainer.cli.follow import choose_view, follow
from remote_trainer.cli.options import Dataset, Detach, DriverOption, Host, Json, MaxCost, Presets, Set, Tool
from remote_trainer.cli.presets import brief

if TYPE_CHECKING:
    from remote_trainer.model import Job
    from remote_trainer.service.app import App
    from remote_trainer.service.submit import Order

app = typer.Typer(name="run-training", rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def run_training(
    tool: Tool,
    driver: Annotated[
        str, typer.Option("--driver", help="Where to run it; several with commas (remote-trainer drivers list)")
    ] = "local",
    host: Host = None,
    dataset: Dataset = None,
    base: Annotated[str | None, typer.Option("--base", help="The base model: a folder or a hub id (as --set base=…)")] = None,
    settings: Set = None,
    presets: Presets = None,
    option: DriverOption = None,
    name: Annotated[str | None, typer.Option("--name", help="A name to find the job by; free again once it has ended")] = None,
    max_hours: Annotated[float | None, typer.Option("--max-hours", help="Stop after so many hours")] = None,
    max_cost: MaxCost = None,
    max_attempts: Annotated[int | None, typer.Option("--max-attempts", help="Machines to use up, one after the other")] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", help="Among several drivers: preferred, cheapest, fastest or queue")
    ] = None,
    spot: Annotated[
        bool | None, typer.Option("--spot/--no-spot", help="Rent what the provider may take back, where it is cheaper")
    ] = None,
    race: Annotated[
        int | None, typer.Option("--race", min=1, max=3, help="Rent so many at once, keep the first that serves")
    ] = None,
    priority: Annotated[int, typer.Option("--priority", help="Higher goes first")] = 0,
    tenant: Annotated[str, typer.Option("--tenant", help="For whom: the first part of where artifacts are kept")] = "default",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and touch nothing")] = False,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Train on a machine: check, ship, run, follow, fetch and verify. Ctrl-C detaches, the job goes on."""
    from remote_trainer.service.submit import Order

    order = Order(
        tool=tool,
        driver=driver,
        dataset=options.source(dataset),
        base=base,
        settings=settings or (),
        presets=presets,
        driver_options=options.driver_options(host, option),
        name=name,
        tenant=tenant,
        priority=priority,
        max_hours=max_hours,
        max_cost=options.money(max_cost),
        max_attempts=max_attempts,
        terms=options.terms(strategy=strategy, spot=spot, race=race),
    )
    if dry_run:
        _show(order, as_json=as_json)
    else:
        _run(order, detach=detach, as_json=as_json)


def main() -> NoReturn:
    """Run ``run-training``."""
    guard.run(app, "run-training")


def _show(order: Order, *, as_json: bool) -> None:
    from remote_trainer.cli import plan

    session.wait_for(plan.show(order, as_json=as_json))


def _run(order: Order, *, detach: bool, as_json: bool) -> None:
    from remote_trainer.service.submit import submit

    async def work(opened: App) -> None:
        await go_on(opened, await submit(opened, order), detach=detach, as_json=as_json)

    session.run(work)


async def go_on(opened: App, job: Job, *, detach: bool, as_json: bool) -> None:
    """See to it that a queued job is worked on, and follow it to its end unless the user wants to leave."""
    from remote_trainer.cli import outcome
    from remote_trainer.service import background

    background.ensure_worker(opened)
    if detach:
        _leave(opened, job, as_json=as_json)
        return
    view = choose_view(as_json=as_json)
    if not as_json:
        out.line(f"job {job.id}: {job.plan.tool} on {job.driver}" + (f" ({job.name})" if job.name != job.id else ""))
        for line in brief(documents.preset(job.plan)):
            out.line(line)
    seen = await follow(opened, job.id, view)
    await outcome.tell(opened, seen, as_json=as_json, with_log=out.is_terminal())


def _leave(opened: App, job: Job, *, as_json: bool) -> None:
    from remote_trainer.policy import job_cost
    from remote_trainer.service import jobs

    now = opened.clock.now()
    if as_json:
        out.document({"job": documents.job(job, cost=job_cost(job, now), elapsed_s=jobs.elapsed_s(job, now))})
        return
    out.line(job.id)
    for line in brief(documents.preset(job.plan)):
        out.problem(line)
    out.problem(f"queued; watch it with: remote-trainer logs -f {job.id}   wait for it with: remote-trainer wait {job.id}")
