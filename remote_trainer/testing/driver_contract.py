"""What drivers keep to, as pytest suites, by what they are: ``BorrowedDriverContract``, ``RentingDriverContract``, ``SurveyorContract``.

The first needs the class under test as ``kind``, and the fixtures ``options`` and ``settings``; the second the fixtures ``renter`` and
``wanted``, for an account without machines and a market with several suitable ones; the third ``surveyor`` and ``wanted``, for a market in
which something is suitable and something is not.

Rules for editing: only what ports.Driver promises; each docstring is one sentence of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar

import pytest
from jsonschema import Draft202012Validator

from remote_trainer.document import from_json, to_json
from remote_trainer.errors import ConfigError, Transient
from remote_trainer.model import Instance, InstanceState, Offer, Resources
from remote_trainer.ports import Bidder, Biller, Driver, DriverSettings, Examiner, Recorder, SelfEnding, Spec, Surveyor


class BorrowedDriverContract:
    """The suite."""

    #: The class under test.
    kind: ClassVar[Any]

    @pytest.fixture
    def options(self) -> Mapping[str, Any]:
        """Return options that lead to a machine which is there."""
        raise NotImplementedError

    @pytest.fixture
    def settings(self) -> DriverSettings:
        """Return the installation's settings."""
        raise NotImplementedError

    @pytest.fixture
    async def driver(self, options: Mapping[str, Any], settings: DriverSettings) -> AsyncIterator[Driver]:
        """Return the driver under test."""
        driver: Driver = self.kind(options, settings)
        yield driver
        await driver.close()

    async def instance(self, driver: Driver, label: str = "rt-x-y-a1") -> Instance:
        """Return what a job would get."""
        offer, *_ = await driver.offers(Resources())
        return await driver.create(offer, Spec(), label)

    async def test_offers_cost_nothing(self, driver: Driver) -> None:
        """There is something on offer, by this driver, for nothing."""
        offers = await driver.offers(Resources())
        assert offers
        assert {(offer.driver, offer.price_per_hour) for offer in offers} == {(driver.name, Decimal(0))}

    async def test_the_instance_is_borrowed_and_ready(self, driver: Driver) -> None:
        """A created instance carries the label, is ready, and is known not to be ours."""
        made = await self.instance(driver)
        assert driver.abilities.borrowed
        assert (made.label, made.borrowed, made.state, made.price_per_hour) == (
            "rt-x-y-a1",
            True,
            InstanceState.READY,
            Decimal(0),
        )

    async def test_nothing_is_listed_and_destroy_destroys_nothing(self, driver: Driver) -> None:
        """Borrowed machines are never listed, and still work after a destroy, however often."""
        made = await self.instance(driver)
        await driver.destroy(made)
        await driver.destroy(made)
        assert await driver.instances("") == []
        assert (await (await driver.connect(made)).run(["echo", "here"])).stdout == b"here\n"

    async def test_one_transport_for_all_jobs(self, driver: Driver) -> None:
        """Jobs on the same machine share one transport, whether their instance has the host key stored already or not."""
        first = await driver.connect(await self.instance(driver, "rt-x-one-a1"))
        await first.run(["true"])
        assert await driver.connect(await self.instance(driver, "rt-x-two-a1")) is first

    async def test_a_stored_instance_still_connects(
        self, driver: Driver, options: Mapping[str, Any], settings: DriverSettings
    ) -> None:
        """An instance that went through the store leads another process's driver to the same machine."""
        stored = from_json(Instance, to_json(await self.instance(driver)))
        other: Driver = self.kind(options, settings)
        try:
            assert (await (await other.connect(stored)).run(["echo", "same"])).stdout == b"same\n"
        finally:
            await other.close()

    async def test_check_says_what_it_found(self, driver: Driver) -> None:
        """A check of a machine that is there is a sentence."""
        assert await driver.check()

    async def test_options_are_data_with_a_schema(self, options: Mapping[str, Any]) -> None:
        """The schema of the options is valid, every option has a description, and the test's own pass."""
        schema = self.kind.option_schema
        Draft202012Validator.check_schema(schema)
        assert all(option.get("description") for option in schema["properties"].values())
        assert Draft202012Validator(schema).is_valid(dict(options))

    async def test_bad_options_are_all_named(self, options: Mapping[str, Any], settings: DriverSettings) -> None:
        """Unknown and wrong options raise ConfigError that names each, before anything is opened."""
        with pytest.raises(ConfigError, match=r"(?s)(?=.*colour)(?=.*root)"):
            self.kind({**options, "colour": "red", "root": 5}, settings)


class RentingDriverContract:
    """The suite. What a driver need not be is tried only where it is that."""

    @pytest.fixture
    def renter(self) -> Driver:
        """Return the driver under test. What it rents may be simulated."""
        raise NotImplementedError

    @pytest.fixture
    def wanted(self) -> Resources:
        """Return needs that several machines of the market meet."""
        return Resources()

    async def rent(
        self, renter: Driver, wanted: Resources, label: str = "rt-x-y-a1", *, spot: bool = False
    ) -> tuple[Offer, Instance]:
        """Rent something that is on offer."""
        offer, *_ = await renter.offers(wanted, spot=spot)
        return offer, await renter.create(offer, Spec(image="i", disk_gb=wanted.disk_gb), label)

    async def test_offers_have_a_price_of_which_the_disk_is_a_part(self, renter: Driver, wanted: Resources) -> None:
        """On demand and, where there are such, spot: each says which it is."""
        assert not renter.abilities.borrowed
        for spot in (False, True)[: 1 + renter.abilities.spot]:
            offers = await renter.offers(wanted, spot=spot)
            assert offers
            assert len({offer.id for offer in offers}) == len(offers)
            for offer in offers:
                assert (offer.driver, offer.spot) == (renter.name, spot)
                assert 0 <= offer.disk_per_hour < offer.price_per_hour
                assert offer.speed > 0
                assert from_json(Offer, to_json(offer)) == offer, "it is saved before anything is rented"

    async def test_what_is_rented_is_listed_by_its_label(self, renter: Driver, wanted: Resources) -> None:
        """By every beginning of it, and by nothing else."""
        offer, made = await self.rent(renter, wanted)
        _, other = await self.rent(renter, wanted, "rt-other-y-a1")
        assert (made.label, made.borrowed) == ("rt-x-y-a1", False)
        assert made.id != other.id
        assert [one.id for one in await renter.instances("rt-x-")] == [made.id]
        assert {one.id for one in await renter.instances("rt-")} == {made.id, other.id}
        (listed,) = await renter.instances(made.label)
        assert listed.price_per_hour == pytest.approx(offer.price_per_hour, rel=Decimal("0.01"))

    async def test_a_request_whose_time_is_over_is_not_sent(self, renter: Driver, wanted: Resources) -> None:
        """Transient, and nothing was rented."""
        offer, *_ = await renter.offers(wanted)
        with pytest.raises(Transient):
            await renter.create(offer, Spec(image="i", left_s=lambda: -1.0), "rt-x-y-a1")
        assert await renter.instances("") == []

    async def test_an_end_may_be_asked_for_again_and_again(self, renter: Driver, wanted: Resources) -> None:
        """Also by another process that knows the id alone, and of what never was."""
        _, made = await self.rent(renter, wanted)
        for _ in range(2):
            await renter.destroy(Instance(id=made.id, label=made.label))
        await renter.destroy(Instance(id="999999999", label="rt-x-y-a9"))

    async def test_the_provider_can_be_told_when_to_end_it(self, renter: Driver, wanted: Resources) -> None:
        """Again, and with other times."""
        _, made = await self.rent(renter, wanted)
        for hours in (5, 5, 1):
            await renter.guard(made, datetime.now(UTC) + timedelta(hours=hours))

    async def test_what_is_bid_can_be_changed(self, renter: Driver, wanted: Resources) -> None:
        """Repeatedly; for what is gone it is no error."""
        assert isinstance(renter, Bidder) == renter.abilities.spot
        if isinstance(renter, Bidder):
            offer, made = await self.rent(renter, wanted, spot=True)
            for _ in range(2):
                await renter.bid(made, offer.price_per_hour - offer.disk_per_hour + 1)
            (listed,) = await renter.instances(made.label)
            assert listed.price_per_hour == pytest.approx(offer.price_per_hour + 1, rel=Decimal("0.01"))
            await renter.bid(Instance(id="999999999", label="rt-x-y-a9"), Decimal(1))

    async def test_records_know_what_was_rented(self, renter: Driver, wanted: Resources) -> None:
        """For the label that asked, since the time of asking; not what others have rented."""
        assert isinstance(renter, Recorder) == renter.abilities.records
        if isinstance(renter, Recorder):
            since = datetime.now(UTC) - timedelta(seconds=30)
            offer, made = await self.rent(renter, wanted)
            await self.rent(renter, wanted, "rt-other-y-a1")
            assert [(one.id, one.label) for one in await renter.recorded(offer, made.label, since)] == [(made.id, made.label)]
            assert await renter.recorded(offer, "rt-nobody-y-a1", since) == []
            assert await renter.recorded(offer, made.label, since + timedelta(days=1)) == []

    async def test_credit_and_charges_are_money(self, renter: Driver, wanted: Resources) -> None:
        """Of days that have begun, and each of an instance and a day once."""
        if isinstance(renter, Biller):
            assert await renter.credit() >= 0
            now = datetime.now(UTC)
            found = await renter.charges(now - timedelta(days=2), now)
            assert len({(charge.instance, charge.day) for charge in found}) == len(found)
            assert all(charge.day <= now and charge.amount >= 0 for charge in found)

    async def test_the_farewell_is_a_script(self, renter: Driver) -> None:
        """That sh can read."""
        if isinstance(renter, SelfEnding):
            checking = await asyncio.create_subprocess_exec("sh", "-n", stdin=asyncio.subprocess.PIPE)
            await checking.communicate(renter.farewell.encode())
            assert checking.returncode == 0

    async def test_an_account_in_order_has_no_findings_against_it(self, renter: Driver) -> None:
        """Each question once, each with an answer; and nothing was rented to find out."""
        if isinstance(renter, Examiner):
            found = await renter.examine()
            assert found
            assert len({each.question for each in found}) == len(found)
            assert all(each.answer and each.ok is not False for each in found)
            assert await renter.instances("") == []


class SurveyorContract:
    """The suite."""

    @pytest.fixture
    def surveyor(self) -> Driver:
        """Return the driver under test."""
        raise NotImplementedError

    @pytest.fixture
    def wanted(self) -> Resources:
        """Return needs that a part of the market meets."""
        return Resources()

    async def test_a_survey_offers_what_a_job_is_offered(self, surveyor: Driver, wanted: Resources) -> None:
        """Nothing more, nothing less, nothing else."""
        assert isinstance(surveyor, Surveyor)
        seen = await surveyor.survey(wanted)
        assert seen.offers
        assert list(seen.offers) == list(await surveyor.offers(wanted))

    async def test_what_is_refused_says_why(self, surveyor: Driver, wanted: Resources) -> None:
        """Each once, with the condition and the reason, and none that is offered too."""
        assert isinstance(surveyor, Surveyor)
        seen = await surveyor.survey(wanted)
        assert seen.refused
        assert all(each.condition and each.reason and each.description for each in seen.refused)
        ids = [each.offer for each in seen.refused]
        assert len(set(ids)) == len(ids)
        assert not set(ids) & {offer.id for offer in seen.offers}
