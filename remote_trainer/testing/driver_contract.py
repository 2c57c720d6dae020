"""What drivers keep to, as pytest suites: ``BorrowedDriverContract`` for those that borrow, ``SurveyorContract`` for those that can survey.

The first needs the class under test as ``kind``, and the fixtures ``options`` and ``settings``; the second the fixtures ``surveyor`` and
``wanted``, for a market in which something is suitable and something is not.

Rules for editing: only what ports.Driver promises; each docstring is one sentence of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from typing import Any, ClassVar

import pytest
from jsonschema import Draft202012Validator

from remote_trainer.document import from_json, to_json
from remote_trainer.errors import ConfigError
from remote_trainer.model import Instance, InstanceState, Resources
from remote_trainer.ports import Driver, DriverSettings, Spec, Surveyor


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
