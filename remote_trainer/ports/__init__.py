"""The contracts between the core and the world: Store, Driver, Transport, Host, Objects, Clock.

Each docstring states behaviour: idempotent? may it block? what if absent? which errors? Every implementation passes the suite of the
same name in ``remote_trainer.testing``. Rules for editing: protocols and the values they exchange only; a new verb needs a case in
the suite first. Nothing here may be specific to one provider, database or shell.
"""

from __future__ import annotations

from remote_trainer.ports.clock import Clock
from remote_trainer.ports.driver import (
    Abilities,
    Bidder,
    Biller,
    Charge,
    Driver,
    DriverSettings,
    Examiner,
    Finding,
    Recorder,
    Refusal,
    SelfEnding,
    Spec,
    Survey,
    Surveyor,
)
from remote_trainer.ports.host import Ended, Follow, FollowItem, Heartbeat, Host, Output, RemoteFile, StepSpec, StepStatus
from remote_trainer.ports.objects import Objects, Outbox, StoredObject
from remote_trainer.ports.store import Change, JobQuery, Ledger, Page, Renewal, Store
from remote_trainer.ports.transport import Channel, Completed, Progress, Transport

__all__ = [
    "Abilities",
    "Bidder",
    "Biller",
    "Change",
    "Channel",
    "Charge",
    "Clock",
    "Completed",
    "Driver",
    "DriverSettings",
    "Ended",
    "Examiner",
    "Finding",
    "Follow",
    "FollowItem",
    "Heartbeat",
    "Host",
    "JobQuery",
    "Ledger",
    "Objects",
    "Outbox",
    "Output",
    "Page",
    "Progress",
    "Recorder",
    "Refusal",
    "RemoteFile",
    "Renewal",
    "SelfEnding",
    "Spec",
    "StepSpec",
    "StepStatus",
    "Store",
    "StoredObject",
    "Survey",
    "Surveyor",
    "Transport",
]
