"""``remote-trainer list|show|logs|wait|cancel|retry|evaluate|artifacts``: looking at jobs and saying what should become of them.

Rules for editing: one function for a command; it asks the service and prints.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remote_trainer.cli import documents, options, out, session
from remote_trainer.cli.options import Detach, JobArgument, Json, MaxCost, Set
from remote_trainer.errors import UsageError

if TYPE_CHECKING:
    from remote_trainer.model import Job, Phase
    from remote_trainer.service.app import App


def register(app: typer.Typer) -> None:
    """Add the commands, in the order people meet them."""
    app.command("list")(list_jobs)
    app.command("show")(show)
    app.command("logs")(logs)
    app.command("wait")(wait)
    app.command("cancel")(cancel)
    app.command("retry")(retry)
    app.command("evaluate")(evaluate)
    app.command("artifacts")(artifacts)


def list_jobs(
    every: Annotated[bool, typer.Option("--all", help="Also jobs that have ended")] = False,
    phase: Annotated[str | None, typer.Option("--phase", help="Only jobs in this phase, e.g. executing or failed")] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only jobs of this tenant")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many jobs at most")] = 50,
    as_json: Json = False,
) -> None:
    """List jobs, newest first: those that have not ended, or what --all or --phase asks for."""
    from remote_trainer.ports import JobQuery
    from remote_trainer.service import jobs

    async def work(app: App) -> None:
        query = JobQuery(phases=_phases(phase, every), tenant=tenant, limit=limit)
        page = await jobs.list_jobs(app, query)
        found = [_document(app, job) for job in page.jobs]
        if as_json:
            out.document({"jobs": found, "more": page.cursor is not None})
            return
        rows = [_row(each) for each in found]
        out.table(("job", "name", "tool", "driver", "phase", "time", "cost", "note"), rows)
        if page.cursor is not None:
            out.problem(f"there are more: --limit {limit * 2}")

    session.run(work)


def show(job: JobArgument, as_json: Json = False) -> None:
    """Show all that is known of a job: phase, attempts, steps, numbers, inputs, artifacts, events."""
    from remote_trainer.cli import details
    from remote_trainer.service import evaluation, jobs

    async def work(app: App) -> None:
        found = await jobs.get_job(app, job)
        seen = await jobs.snapshot(app, found.id)
        elapsed_s = jobs.elapsed_s(seen.job, app.clock.now())
        events, compared = await jobs.events(app, found.id), await evaluation.evaluations(app, found)
        document = documents.full_job(seen, elapsed_s=elapsed_s, events=events, evaluations=compared)
        if as_json:
            out.document(document)
        else:
            details.show(document)

    session.run(work)


def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job has ended")] = False,
    step: Annotated[str | None, typer.Option("--step", help="Only this step: train, or train.2 for its second run")] = None,
    as_json: Json = False,
) -> None:
    """Print what the steps printed: byte for byte into a pipe or file, harmless text on a terminal."""
    from remote_trainer.cli.printing import LogPrinter
    from remote_trainer.service import jobs

    async def work(app: App) -> None:
        found = await jobs.get_job(app, job)
        if step is not None and step.partition(".")[0] not in {planned.name for planned in found.plan.steps}:
            names = ", ".join(planned.name for planned in found.plan.steps)
            raise UsageError(f"job {found.id} has no step {step!r}; its steps are: {names}")
        printer = LogPrinter(as_json=as_json)
        async for piece in jobs.read_logs(app, found.id, step=step, follow=follow):
            printer.print(piece)

    session.run(work)


def wait(job: JobArgument, as_json: Json = False) -> None:
    """Wait until a job has ended; exits with 0 if it is done, 10 if it failed, 11 if it was cancelled."""
    from remote_trainer.cli import outcome
    from remote_trainer.service import jobs

    async def work(app: App) -> None:
        found = await jobs.get_job(app, job)
        async for seen in jobs.watch_job(app, found.id):
            if seen.job.phase.terminal:
                await outcome.tell(app, seen, as_json=as_json)

    session.run(work)


def cancel(job: JobArgument, as_json: Json = False) -> None:
    """Ask for the end of a job; what it has made so far is kept. Use wait to see it end."""
    from remote_trainer.service import background, jobs

    async def work(app: App) -> None:
        found = await jobs.cancel(app, (await jobs.get_job(app, job)).id)
        background.ensure_worker(app)  # somebody must carry the wish out
        if as_json:
            out.document({"job": _document(app, found)})
        else:
            out.line(f"job {found.id} ({found.phase}) is going to be cancelled; see it end with: remote-trainer wait {found.id}")

    session.run(work)


def retry(job: JobArgument, detach: Detach = False, as_json: Json = False) -> None:
    """Run an ended job once more, as a new job that resumes from the newest checkpoint of the old one."""
    from remote_trainer.cli.run import go_on
    from remote_trainer.service import jobs

    async def work(app: App) -> None:
        old = await jobs.get_job(app, job)
        await go_on(app, await jobs.retry(app, old.id), detach=detach, as_json=as_json)

    session.run(work)


def evaluate(
    job: JobArgument,
    prompts: Annotated[
        str | None, typer.Option("--prompts", help="Prompts, separated by |; else captions of the dataset")
    ] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Seeds of the noise, separated by commas")] = None,
    clip: Annotated[str | None, typer.Option("--clip", help="The CLIP model that judges: a folder, a hub id, or none")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="What counts how much, such as clip_score=2,copying=0")] = None,
    settings: Set = None,
    max_hours: Annotated[
        float | None, typer.Option("--max-hours", help="Stop after so many hours (default: the training's)")
    ] = None,
    max_cost: MaxCost = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Compare the checkpoints of an ended LoRA training, as a new job: pictures, metrics, a report, and the best one's LoRA."""
    from remote_trainer.cli.run import go_on
    from remote_trainer.service import evaluation, jobs

    dollars = options.money(max_cost)
    named = {"prompts": prompts, "seeds": seeds, "clip": clip, "weights": weights}
    wishes = [*(settings or ()), *(f"{name}={value}" for name, value in named.items() if value is not None)]

    async def work(app: App) -> None:
        old = await jobs.get_job(app, job)
        queued = await evaluation.evaluate(app, old.id, wishes, max_hours=max_hours, max_cost=dollars)
        await go_on(app, queued, detach=detach, as_json=as_json)

    session.run(work)


def artifacts(
    job: JobArgument,
    download: Annotated[
        Path | None, typer.Option("--download", metavar="DIR", help="Write them below this folder, verified")
    ] = None,
    links: Annotated[bool, typer.Option("--links", help="Print links that anybody can download from for an hour")] = False,
    as_json: Json = False,
) -> None:
    """List what a job has kept; with --download fetch it and verify each SHA-256."""
    from remote_trainer.cli import outcome
    from remote_trainer.service import jobs

    async def work(app: App) -> None:
        found = await jobs.get_job(app, job)
        manifest = jobs.kept_attempt(found).manifest
        assert manifest is not None  # that is what kept means
        rows = []
        for each in manifest.artifacts:
            row = documents.artifact(each)
            if download is not None:
                row["file"] = str(await jobs.download(app, each, download))
            if links:
                row["link"] = await jobs.links(app, each)
            rows.append(row)
        if as_json:
            out.document({"job": found.id, "complete": manifest.complete, "artifacts": rows})
        elif download is not None or links:
            for row in rows:
                out.line(row.get("link") or row["file"])
        else:
            outcome.show_artifacts(found)
        if not manifest.complete:
            out.problem(f"job {found.id} did not end well: these are the parts that were kept")

    session.run(work)


def _row(job: dict[str, Any]) -> tuple[str, ...]:
    name = job["name"] if job["name"] != job["id"] else ""
    note = job["note"] or job["message"]
    time, cost = out.duration(job["elapsed_s"]), out.cost(job["cost_usd"])
    return job["id"], name, job["tool"], job["driver"], job["phase"], time, cost, note


def _phases(phase: str | None, every: bool) -> frozenset[Phase] | None:
    from remote_trainer.model import Phase

    if phase is not None:
        if phase not in {each.value for each in Phase}:
            raise UsageError(f"there is no phase {phase!r}; there are: {', '.join(Phase)}")
        return frozenset({Phase(phase)})
    return None if every else frozenset(each for each in Phase if not each.terminal)


def _document(app: App, job: Job) -> dict[str, Any]:
    from remote_trainer.policy import job_cost
    from remote_trainer.service import jobs

    now = app.clock.now()
    return documents.job(job, cost=job_cost(job, now), elapsed_s=jobs.elapsed_s(job, now))
