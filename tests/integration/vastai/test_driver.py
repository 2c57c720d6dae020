"""The driver of Vast.ai against the simulated service: what it asks, in which order, and what it leaves behind."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from remote_trainer.drivers.vastai.access import Access
from remote_trainer.drivers.vastai.api import VastApi
from remote_trainer.drivers.vastai.contacts import Contact, Contacts
from remote_trainer.drivers.vastai.driver import VastDriver
from remote_trainer.errors import Ambiguous, LoginRefused, Permanent, Transient
from remote_trainer.model import Instance, InstanceState
from remote_trainer.ports import Bidder, Biller, DriverSettings, Examiner, Recorder, SelfEnding, Spec
from remote_trainer.testing.vast.server import SimVast
from tests.integration.vastai.ground import LABEL, WANTED, asked, rent
from tests.support.sshd import SshdServer


def test_it_can_do_what_it_says(driver: VastDriver) -> None:
    """Every optional ability is there as the core will look for it."""
    for ability in (Bidder, Recorder, Biller, Examiner, SelfEnding):
        assert isinstance(driver, ability)
    assert driver.abilities.spot and driver.abilities.records and driver.abilities.scheduler


# ---------------------------------------------------------------------------------------------------------------- renting


async def test_what_is_rented_ends_itself_even_if_nobody_hears_of_it(sim: SimVast, driver: VastDriver) -> None:
    """The request itself carries what ends the machine, an hour after the scheduler would have; the provider takes 4048 characters."""
    offer, *_ = await driver.offers(WANTED)
    until = datetime.fromtimestamp(sim.now, UTC) + timedelta(hours=5)
    made = await driver.create(offer, Spec(image="i", disk_gb=8, until=until), LABEL)
    script = str(sim.live[int(made.id)].body["onstart"])
    seconds = int(next(line for line in script.splitlines() if line.startswith("sleep ")).split()[1])
    assert seconds == pytest.approx(6 * 3600, abs=120)
    assert len(script) <= 4048
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0


async def test_what_is_rented_costs_what_was_offered(sim: SimVast, driver: VastDriver) -> None:
    """On demand and spot, with the disk that is really rented."""
    for spot in (False, True):
        offer, made = await rent(driver, spot=spot)
        kept = sim.live[int(made.id)]
        assert kept.disk_gb == 10.0
        assert kept.bid == (float(offer.price_per_hour - offer.disk_per_hour) if spot else None)
        (listed,) = [one for one in await driver.instances("rt-") if one.id == made.id]
        assert listed.price_per_hour == pytest.approx(offer.price_per_hour, abs=Decimal("0.00001"))
        assert listed.disk_per_hour == pytest.approx(offer.disk_per_hour, abs=Decimal("0.00001"))


async def test_a_machine_hears_of_our_key_while_it_boots(sim: SimVast, driver: VastDriver) -> None:
    """Right after the request, not only when somebody connects; and not twice."""
    _, made = await rent(driver)
    assert len(sim.live[int(made.id)].keys) == 1
    await driver.connect(Instance(id=made.id, label=LABEL, address={"host": "127.0.0.1", "port": 1}))
    assert asked(sim, "POST", "/ssh/") == 1


async def test_a_machine_that_a_refused_bid_left_behind_is_given_back(sim: SimVast, driver: VastDriver) -> None:
    """It never started and costs its disk. One that cannot be given back leaves the request in doubt, so that somebody looks."""
    offer, *_ = await driver.offers(WANTED, spot=True)
    sim.faults.arm("create-parked")
    with pytest.raises(Permanent, match="gone"):
        await driver.create(offer, Spec(image="i"), LABEL)
    assert [each.ended_at is None for each in sim.live.values()] == [False]
    sim.faults.arm("create-parked")
    sim.faults.arm("destroy-bad-key")
    other = (await driver.offers(WANTED, spot=True))[-1]
    with pytest.raises(Ambiguous, match="could not be given back"):
        await driver.create(other, Spec(image="i"), LABEL)


async def test_a_bid_can_be_raised_and_one_for_what_is_gone_is_no_error(sim: SimVast, driver: VastDriver) -> None:
    """Again is fine."""
    _, made = await rent(driver, spot=True)
    for _ in range(2):
        await driver.bid(made, Decimal("0.9"))
    assert sim.live[int(made.id)].bid == 0.9
    await driver.bid(Instance(id="12345", label=LABEL), Decimal("0.9"))


async def test_an_outbid_machine_is_stopped_in_all_its_shapes(sim: SimVast, driver: VastDriver) -> None:
    """As the service shows it."""
    for shape in ("stopped", "exited", "loading"):
        _, made = await rent(driver, spot=True, label=f"{LABEL}-{shape}")
        sim.clock.advance(60)
        sim.faults.arm("run-outbid", label=f"{LABEL}-{shape}", shape=shape)
        sim.tick()
        states = {one.id: one.state for one in await driver.instances("rt-")}
        assert states[made.id] is InstanceState.STOPPED, shape


# ---------------------------------------------------------------------------------------------------------------- records


async def test_an_instance_that_no_listing_shows_is_found_in_the_log(sim: SimVast, driver: VastDriver) -> None:
    """The request was accepted, its reply lost, and the listing lags; others' instances and those that are gone are left out."""
    began = datetime.now(UTC) - timedelta(seconds=30)
    sim.faults.arm("list-lag", seconds=3600)
    offer, made = await rent(driver)
    await rent(driver, label="rt-dep-j2-a1")
    _, gone = await rent(driver)
    await driver.destroy(gone)
    sim.clock.advance(60)
    assert made.id not in {one.id for one in await driver.instances("")}
    assert [(one.id, one.label) for one in await driver.recorded(offer, LABEL, began)] == [(made.id, LABEL)]
    assert await driver.recorded(offer, LABEL, began + timedelta(hours=1)) == []
    assert await driver.recorded(offer, "rt-dep-j3-a1", began) == []


async def test_a_log_without_labels_finds_ours_by_looking_at_each(sim: SimVast, driver: VastDriver) -> None:
    """What is listed or shown under another label, or under none, is somebody else's."""
    offer, made = await rent(driver)
    for label in ("rt-dep-j2-a1", ""):
        await rent(driver, label=label)
    for row in sim.audit:
        row["args"].pop("label", None)
    found = await driver.recorded(offer, LABEL, datetime.now(UTC) - timedelta(seconds=30))
    assert [one.id for one in found] == [made.id]


async def test_a_key_that_may_not_read_the_log_says_so_once_and_for_all(sim: SimVast, driver: VastDriver) -> None:
    """Permanent: asking again will not help, and the core goes on by the listing alone."""
    offer, _ = await rent(driver)
    sim.account.key.permissions = {group: {} for group in ("instance_read", "instance_write")}
    with pytest.raises(Permanent, match="misc"):
        await driver.recorded(offer, LABEL, datetime.now(UTC))


async def test_credit_and_bills(sim: SimVast, driver: VastDriver) -> None:
    """What is left, and what an instance cost on its day."""
    _, made = await rent(driver)
    sim.clock.advance(1800)
    sim.tick()
    before = await driver.credit()
    assert before < 25
    now = datetime.fromtimestamp(sim.clock.now(), UTC)
    (charge,) = await driver.charges(now - timedelta(days=1), now)
    assert (charge.instance, charge.label) == (made.id, LABEL)
    assert charge.amount == pytest.approx(Decimal(25) - before, abs=Decimal("0.00001"))


# ----------------------------------------------------------------------------------------------------- the last switch


async def test_the_end_is_moved_by_one_request_and_repeated_by_none(sim: SimVast, driver: VastDriver) -> None:
    """Asked for again and again, as deadlines move by minutes, it costs a request only when the hour changes."""
    _, made = await rent(driver)
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    before = len(sim.requests)
    for minutes in (65, 66, 110, 119, 121, 170):
        await driver.guard(made, hour + timedelta(minutes=minutes))
    assert len(sim.requests) - before == 2
    (job,) = sim.schedule.jobs.values()
    assert job.due == (hour + timedelta(hours=3)).timestamp()


async def test_what_somebody_took_away_is_put_back(sim: SimVast, driver: VastDriver) -> None:
    """A job of the scheduler that is gone is made anew, not changed."""
    _, made = await rent(driver)
    await driver.guard(made, datetime.now(UTC) + timedelta(hours=1))
    sim.schedule.jobs.clear()
    await driver.guard(made, datetime.now(UTC) + timedelta(hours=5))
    assert len(sim.schedule.jobs) == 1


@pytest.mark.parametrize("same_process", [True, False])
async def test_nothing_is_scheduled_any_more_for_a_machine_that_is_gone(
    sim: SimVast, settings: DriverSettings, same_process: bool
) -> None:
    """The switch stays until a listing lacks the machine, and goes then, whoever had set it."""
    first = VastDriver({"url": sim.url}, settings)
    _, made = await rent(first)
    await first.guard(made, datetime.now(UTC) + timedelta(hours=1))
    last = first if same_process else VastDriver({"url": sim.url}, settings)
    sim.faults.arm("destroy-lingers", seconds=60)
    await last.destroy(made)
    assert len(await last.instances("")) == 1
    assert len(sim.schedule.jobs) == 1
    sim.clock.advance(120)
    assert await last.instances("") == []
    for each in {first, last}:
        await each.close()
    assert sim.schedule.jobs == {}
    assert asked(sim, "GET", "schedule_job") == (0 if same_process else 1)


async def test_a_listing_alone_takes_no_switch_away(sim: SimVast, settings: DriverSettings) -> None:
    """A machine whose end was asked for is missing from a listing and still there: its switch stays."""
    driver = VastDriver({"url": sim.url}, settings)
    _, made = await rent(driver)
    await driver.guard(made, datetime.now(UTC) + timedelta(hours=1))
    sim.faults.arm("destroy-lingers", seconds=3600)
    await driver.destroy(made)
    sim.live[int(made.id)].listed_at = float("inf")
    assert await driver.instances("") == []
    await driver.close()
    assert len(sim.schedule.jobs) == 1


async def test_a_listing_that_lacks_a_machine_we_are_on_is_not_believed(sim: SimVast, driver: VastDriver) -> None:
    """What is not listed is given up and ended: a machine must be missing by its id, too."""
    _, made = await rent(driver)
    sim.clock.advance(600)
    (ready,) = await driver.instances("rt-")
    await driver.connect(ready)
    sim.faults.arm("list-empty", seconds=3600)
    with pytest.raises(Transient, match=f"lacks instance {made.id}"):
        await driver.instances("rt-")
    await driver.destroy(ready)
    assert await driver.instances("rt-") == []


def test_what_is_remembered_of_an_instance_goes_with_it() -> None:
    """At once when its end was asked for; else only when listings have lacked it for ten minutes."""
    contacts = Contacts()
    kept, ended = contacts.of("1"), contacts.of("2")
    ended.ending = True
    assert contacts.parted({"1", "2"}, 0.0) == []
    assert contacts.parted(set(), 10.0) == [ended]
    assert contacts.parted({"1"}, 500.0) == []
    assert contacts.parted(set(), 600.0) == []
    assert contacts.parted(set(), 1199.0) == []
    assert contacts.parted(set(), 1200.0) == [kept]
    assert contacts.all() == ()


# ------------------------------------------------------------------------------------------------------------ our key


async def test_a_machine_that_has_forgotten_our_key_is_told_anew(sim: SimVast, settings: DriverSettings) -> None:
    """The service believes that it knows the key, so the key is taken away there first; but a new machine may only be slow."""
    api = VastApi(sim.url, sim.key)
    access = Access(lambda: api, settings, "root")
    contact = Contact(str(sim.create(100, {"image": "i", "disk": 10.0, "label": LABEL}).id))
    await access.ask(contact)
    contact.refused = True
    await access.ask(contact)
    assert asked(sim, "POST", "/ssh/") == 1, "it may take minutes until a key is known"
    assert contact.let_in_at is not None
    contact.let_in_at -= 301
    await access.ask(contact)
    assert (asked(sim, "DELETE", "/ssh/"), len(sim.live[int(contact.id)].keys)) == (1, 1)
    assert not contact.refused
    await api.close()


async def test_a_refused_login_is_remembered(sim: SimVast, settings: DriverSettings, sshd: SshdServer) -> None:
    """The host knows other keys than ours: that is seen when it refuses us, and not before."""
    api = VastApi(sim.url, sim.key)
    access = Access(lambda: api, settings, sshd.user)
    contact = Contact(str(sim.create(100, {"image": "i", "disk": 10.0, "label": LABEL}).id))
    instance = Instance(id=contact.id, label=LABEL, address={"host": sshd.host, "port": sshd.port})
    transport = await access.transport(contact, instance)
    assert not contact.refused
    with pytest.raises(LoginRefused):
        await transport.run(["true"])
    assert contact.refused
    assert await access.transport(contact, instance) is transport
    await transport.close()
    await api.close()
