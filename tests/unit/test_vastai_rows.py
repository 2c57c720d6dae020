"""Rows of Vast.ai, and which offers can serve."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remote_trainer.drivers.vastai import rows
from remote_trainer.drivers.vastai.choose import Wishes, disk_to_rent, query, sieve, wide_query
from remote_trainer.model import InstanceState, Resources

OFFER: dict[str, Any] = {
    "id": 111,
    "machine_id": 5,
    "resource_type": "gpu",
    "num_gpus": 1,
    "gpu_name": "RTX 4090",
    "gpu_ram": 24564,
    "compute_cap": 890,
    "cuda_max_good": 12.8,
    "cpu_cores": 32,
    "cpu_cores_effective": 16.0,
    "cpu_ram": 128000,
    "disk_space": 500.0,
    "inet_down": 900.0,
    "inet_down_cost": 0.003,
    "direct_port_count": 100,
    "geolocation": "Ohio, US",
    "reliability2": 0.995,
    "verification": "verified",
    "rentable": True,
    "rented": False,
    "dph_base": 0.35,
    "min_bid": 0.2,
    "dph_total": 0.358,
    "storage_cost": 0.15,
    "duration": 2000000.0,
}
INSTANCE: dict[str, Any] = {
    "id": 777,
    "label": "rt-dep-j1-a1",
    "actual_status": "running",
    "intended_status": "running",
    "cur_state": "running",
    "status_msg": "success, running image/ssh",
    "public_ipaddr": "203.0.113.9 ",
    "ports": {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": "41022"}, {"HostIp": "::", "HostPort": "41022"}]},
    "start_date": 1795000000.1,
    "dph_total": 0.3541,
}
WANTED = Resources(gpus=1, vram_gb=24, disk_gb=100, ram_gb=32)


def without(row: dict[str, Any], *names: str, **other: Any) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in names} | other


# ---------------------------------------------------------------------------------------------------------------- offers


def test_an_offer_is_priced_with_the_disk_that_is_wanted() -> None:
    """GPU part plus storage: 0.15 $ a GB and month of 720 hours, for 100 GB."""
    offer = rows.offer(OFFER, disk_gb=100)
    assert offer is not None
    assert offer.price_per_hour == Decimal("0.370833")
    assert offer.resources == Resources(gpus=1, vram_gb=24, disk_gb=500, ram_gb=64), "our share of the memory goes with the cores"


def test_a_spot_offer_is_priced_at_the_least_bid_that_would_win() -> None:
    """With the same disk; the part that is bid is the price without the disk, and an offer without a floor is none."""
    offer = rows.offer(OFFER, disk_gb=100, spot=True)
    assert offer is not None
    assert offer.spot
    assert offer.price_per_hour - offer.disk_per_hour == Decimal("0.2")
    assert offer.disk_per_hour == Decimal("0.020833")
    assert rows.offer(without(OFFER, "min_bid"), disk_gb=100, spot=True) is None
    assert rows.offer(without(OFFER, "dph_base"), disk_gb=100, spot=True) is not None


@pytest.mark.parametrize(("wanted_gb", "rented_gb"), [(0, 10), (8, 10), (10, 11), (100, 105)])
def test_an_offer_is_priced_and_judged_with_the_disk_that_is_rented(wanted_gb: int, rented_gb: int) -> None:
    """Never less than ten GB, and a little more than is wanted, so that what is wanted is free."""
    assert disk_to_rent(wanted_gb) == rented_gb
    (offer,), _ = sieve([OFFER], Wishes(), Resources(gpus=1, disk_gb=wanted_gb))
    assert offer.disk_per_hour == rows.cents(Decimal("0.15") * rented_gb / 720)


@pytest.mark.parametrize("row", [without(OFFER, "id"), without(OFFER, resource_type="disk"), without(OFFER, num_gpus=0), {}])
def test_what_is_no_gpu_machine_is_no_offer(row: dict[str, Any]) -> None:
    """Storage offers and rows without an id or a price are left out."""
    assert rows.offer(row, disk_gb=10) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpu_ram": 16000}, "vram_gb 16, 24 wanted"),
        ({"num_gpus": 2}, "2 GPUs, 1 wanted"),
        ({"disk_space": 50}, "disk_gb 50, 105 wanted"),
        ({"cpu_ram": 32000}, "ram_gb 16, 32 wanted"),
        ({"gpu_name": "RTX 3090"}, "a RTX 3090"),
        ({"geolocation": "Somewhere, CN"}, "in Somewhere, CN"),
        ({"verification": "deverified"}, "deverified"),
        ({"machine_id": 66}, "does not want this machine"),
        ({"rented": True}, "taken"),
        ({"dph_base": 0.5}, "0.5 at most"),
        ({"reliability2": 0.9}, "reliability 0.9"),
        ({"reliability2": None}, "reliability 0"),
        ({"inet_down": 50}, "Mbit/s"),
        ({"cuda_max_good": "11.8"}, "CUDA 11.8"),
        ({"compute_cap": 700}, "compute capability 7, 8 wanted"),
        ({"direct_port_count": 0}, "direct ports 0"),
        ({"duration": 3600}, "offered for seconds 3600"),
    ],
)
def test_every_condition_is_checked_on_our_side(changes: dict[str, Any], words: str) -> None:
    """The provider's filter is not believed; each refused offer says why."""
    wishes = Wishes(
        gpu_names=("RTX 4090",), regions=("US",), max_price=Decimal("0.5"), blocked_machines=frozenset({66}), min_cuda=12.4
    )
    suitable, refused = sieve([OFFER, {**OFFER, "id": 2, **changes}], wishes, WANTED)
    assert [offer.id for offer in suitable] == ["111"]
    assert words in refused[0].reason


def test_an_offer_that_is_listed_twice_counts_once() -> None:
    """The provider repeats itself."""
    assert len(sieve([OFFER, OFFER], Wishes(), WANTED)[0]) == 1


def test_the_query_asks_in_the_providers_units() -> None:
    """Memory in MB, times in seconds, the price at the disk that is wanted, unwanted machines by name."""
    asked = query(Wishes(blocked_machines=frozenset({9, 3}), gpu_names=("L40S",), min_hours=2), WANTED)
    assert asked["gpu_ram"] == {"gte": 24000}
    assert asked["duration"] == {"gte": 7200}
    assert asked["compute_cap"] == {"gte": 800}
    assert asked["allocated_storage"] == 105.0
    assert asked["disk_space"] == {"gte": 105}, "what is rented: as much as is wanted is to be free on it"
    assert asked["machine_id"] == {"notin": [3, 9]}
    assert asked["gpu_name"] == {"in": ["L40S"]}


def test_spot_machines_are_searched_among_the_bids() -> None:
    """The same query but for its type, in both searches."""
    for ask in (lambda spot: query(Wishes(), WANTED, spot=spot), lambda spot: wide_query(WANTED, spot=spot)):
        assert ask(True) == {**ask(False), "type": "bid"}
        assert ask(False)["type"] == "on-demand"


# ------------------------------------------------------------------------------------------------------------- instances


def test_a_running_instance_is_ready_once_its_way_in_is_known() -> None:
    """Address and direct port come with the listing; blanks around the address do not count."""
    ready = rows.instance(INSTANCE)
    assert ready is not None
    assert (ready.id, ready.label, ready.state) == ("777", "rt-dep-j1-a1", InstanceState.READY)
    assert ready.address == {"host": "203.0.113.9", "port": 41022}
    assert ready.price_per_hour == Decimal("0.3541")


def test_what_an_instance_costs_now() -> None:
    """All of it, the disk alone, and what others would have to bid for a spot machine: on demand nobody can."""
    told = {**INSTANCE, "storage_total_cost": 0.0041, "min_bid": 0.25}
    one, spot = rows.instance(told), rows.instance({**told, "is_bid": True})
    assert one is not None and spot is not None
    assert (one.price_per_hour, one.disk_per_hour, one.min_bid) == (Decimal("0.3541"), Decimal("0.0041"), 0)
    assert spot.min_bid == Decimal("0.25")
    untold = rows.instance({**INSTANCE, "storage_cost": 0.15, "disk_space": 20.0})
    assert untold is not None
    assert untold.disk_per_hour == Decimal("0.004167")


S = InstanceState
HALTED = {"cur_state": "stopped", "intended_status": "stopped", "next_state": "stopped"}


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"ports": None}, S.STARTING),
        ({"ports": [22]}, S.STARTING),
        ({"actual_status": None, "ports": None}, S.STARTING),
        ({"actual_status": "created", "ports": None}, S.STARTING),
        ({"actual_status": "loading", "cur_state": "stopped"}, S.STARTING),
        ({"actual_status": "loading", "cur_state": "stopped", "intended_status": "stopped"}, S.STOPPED),
        ({"actual_status": "loading", "status_msg": "Error response from daemon: pull access denied"}, S.BROKEN),
        ({"actual_status": "created", "status_msg": "OCI runtime create failed"}, S.BROKEN),
        ({"actual_status": "loading", "status_msg": "RUN echo no error so far"}, S.STARTING),
        ({"actual_status": "stopped"}, S.STOPPED),
        ({"actual_status": "exited"}, S.STOPPED),
        ({"actual_status": "exited", **HALTED, "status_msg": "success, running image/ssh"}, S.STOPPED),
        ({"actual_status": "stopped", **HALTED}, S.STOPPED),
        ({"actual_status": "running", **HALTED}, S.STOPPED),
        ({"actual_status": "offline", **HALTED}, S.STOPPED),
        ({"actual_status": None, **HALTED}, S.STOPPED),
        ({"actual_status": "loading", "intended_status": "stopped"}, S.STOPPED),
        ({"actual_status": "created", "intended_status": "stopped"}, S.STOPPED),
        ({"actual_status": "running", "intended_status": "stopped"}, S.READY),
        ({"actual_status": "running", "cur_state": "stopped"}, S.READY),
        ({"actual_status": None, "cur_state": "stopped", "ports": None}, S.STARTING),
        ({"actual_status": "unknown"}, S.STARTING),
        ({"actual_status": "offline"}, S.STARTING),
    ],
)
def test_what_the_provider_says_in_our_words(changes: dict[str, Any], state: InstanceState) -> None:
    """Halted or outbid is stopped, a failed boot is broken; a silent host is neither."""
    one = rows.instance({**INSTANCE, **changes})
    assert one is not None
    assert one.state is state


_JUNK = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()) | st.just({"22/tcp": [{}, 1]})
)


@given(st.dictionaries(st.sampled_from([*OFFER, *INSTANCE]), _JUNK))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_no_row_is_too_odd_to_be_read(row: dict[str, Any]) -> None:
    """Whatever the provider sends is read or left out, never an error."""
    rows.offer(row, disk_gb=10)
    rows.offer(row, disk_gb=10, spot=True)
    rows.instance(row)
    sieve([row], Wishes(), WANTED)
