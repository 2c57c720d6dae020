"""``remote-trainer offers``: what could be rented for a job now.

Rules for editing: the ranking is the service's; here it is printed.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remote_trainer.cli import documents, options, out, outcome, session
from remote_trainer.cli.options import Dataset, DriverOption, Host, Json, MaxCost, Presets, Set, Tool
from remote_trainer.cli.presets import brief
from remote_trainer.errors import NoCapacity

if TYPE_CHECKING:
    from remote_trainer.service.app import App
    from remote_trainer.service.offers import Candidate, Ranking


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("offers")(offers)


def offers(
    tool: Tool,
    driver: Annotated[str, typer.Option("--driver", help="Where to look (remote-trainer drivers list)")] = "vastai",
    host: Host = None,
    dataset: Dataset = None,
    settings: Set = None,
    presets: Presets = None,
    option: DriverOption = None,
    max_hours: Annotated[float | None, typer.Option("--max-hours", help="As for run-training")] = None,
    max_cost: MaxCost = None,
    strategy: Annotated[str | None, typer.Option("--strategy", help="As for run-training")] = None,
    spot: Annotated[bool | None, typer.Option("--spot/--no-spot", help="As for run-training")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many offers to show at most")] = 20,
    as_json: Json = False,
) -> None:
    """Show what could be rented for a job now, the cheapest run first, and what was refused and why. Rents nothing."""
    from remote_trainer.service.offers import rank_offers
    from remote_trainer.service.submit import Order

    order = Order(
        tool=tool,
        driver=driver,
        dataset=options.source(dataset),
        settings=settings or (),
        presets=presets,
        driver_options=options.driver_options(host, option),
        max_hours=max_hours,
        max_cost=options.money(max_cost),
        terms=options.terms(strategy=strategy, spot=spot, race=None),
    )

    async def work(app: App) -> None:
        _tell(await rank_offers(app, order), limit, as_json=as_json)

    session.run(work)


def _tell(ranking: Ranking, limit: int, *, as_json: bool) -> None:
    """Print what was found. NoCapacity if that is nothing."""
    if not as_json:
        _show(ranking, limit)
    elif ranking.candidates:
        out.document(_document(ranking))
    if not ranking.candidates:
        error = NoCapacity(f"{ranking.driver} has no machine for {ranking.plan.tool} now: see what was refused, and ask for less")
        if as_json:
            outcome.fail(error, _document(ranking))
        raise error


def _document(ranking: Ranking) -> dict[str, Any]:
    run = ranking.run
    return {
        "tool": ranking.plan.tool,
        "driver": ranking.driver,
        "preset": documents.preset(ranking.plan),
        "expected": {"hours": run.hours, "gb_in": run.gb_in, "gb_out": run.gb_out, "unmeasured": list(ranking.unmeasured)},
        "offers": [_offer(ranking, each) for each in ranking.candidates],
        "refused": [
            {"offer": each.offer, "description": each.description, "condition": each.condition, "reason": each.reason}
            for each in ranking.refused
        ],
    }


def _offer(ranking: Ranking, each: Candidate) -> dict[str, Any]:
    offer = each.offer
    return {
        "id": offer.id,
        "description": offer.description,
        "machine": offer.machine,
        "expected_cost_usd": str(each.cost),
        "price_per_hour_usd": str(offer.price_per_hour),
        "disk_per_hour_usd": str(offer.disk_per_hour),
        "spot": offer.spot,
        "driver": offer.driver,
        "place": each.place,
        "speed": offer.speed,
        "resources": {name: getattr(offer.resources, name) for name in ("gpus", "vram_gb", "disk_gb", "ram_gb")},
        "first": each.first,
        "failed_lately": each.failed,
        "over_max_cost": _over(ranking, each),
    }


def _over(ranking: Ranking, each: Candidate) -> bool:
    return bool(ranking.limits.max_cost) and each.cost > ranking.limits.max_cost


def _show(ranking: Ranking, limit: int) -> None:
    run, shown = ranking.run, ranking.candidates[:limit]
    unknown = f" (size unknown: {', '.join(ranking.unmeasured)})" if ranking.unmeasured else ""
    out.line(
        f"{ranking.plan.tool} on {ranking.driver}: {run.hours:g} h at speed 1, {out.size(round(run.gb_in * 1e9))} in{unknown}"
    )
    for line in brief(documents.preset(ranking.plan)):
        out.line(line)
    if shown:
        head = ("", "run", "$/h", "speed", "offer", "machine", "what", "note")
        out.table(head, [_row(ranking, each) for each in shown])
        few = sum(each.first for each in ranking.candidates)
        out.line("* taken first" if few == 1 else f"* one of these {few} is taken first: they cost nearly the same")
        if any(each.offer.spot for each in shown):
            out.line("spot: at the price that would be bid; the provider takes such a machine back when somebody bids more")
    if more := len(ranking.candidates) - len(shown):
        out.line(f"{more} more: --limit {len(ranking.candidates)}")
    if ranking.refused:
        out.line()
        out.table(("refused", "for", "for example"), _refusals(ranking))


def _row(ranking: Ranking, each: Candidate) -> tuple[str, ...]:
    offer = each.offer
    notes = (
        (f"place {each.place + 1}", ranking.places > 1),
        ("failed lately", each.failed),
        ("over --max-cost", _over(ranking, each)),
    )
    return (
        "*" if each.first else "",
        f"${each.cost:.3f}",
        f"{offer.price_per_hour:.3f}",
        f"{offer.speed:.2f}",
        offer.id,
        offer.machine,
        offer.description,
        ", ".join(note for note, true in notes if true),
    )


def _refusals(ranking: Ranking) -> list[tuple[str, ...]]:
    """Return one row for each condition, the one that refused most first."""
    by_condition = defaultdict(list)
    for each in ranking.refused:
        by_condition[each.condition].append(each)
    ordered = sorted(by_condition.items(), key=lambda item: (-len(item[1]), item[0]))
    return [(str(len(found)), condition, f"{found[0].reason} ({found[0].description})") for condition, found in ordered]
