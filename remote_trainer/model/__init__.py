"""The frozen values everything else speaks of: job, plan, attempt, instance, step, artifact.

Rules for editing: values only (no behaviour beyond derived properties), no clock, no randomness, no I/O. Times are aware UTC,
durations end in ``_s``, sizes are bytes, money is ``Decimal`` (US dollars). A field that is added needs a default, so that documents
written before still load; a field that is removed or changes its meaning raises ``SCHEMA``. Documents are made in document.py.
"""

from __future__ import annotations

from remote_trainer.model.attempt import Artifact, Attempt, Checkpoint, Manifest, StepRun, StepState
from remote_trainer.model.basics import SCHEMA, JobId, Phase, Reason, Token, Verdict
from remote_trainer.model.inputs import Chunk, Facts, Input
from remote_trainer.model.job import Job, Lease, Limits, Place, Provision, Strategy
from remote_trainer.model.ledger import Entry, EntryKind
from remote_trainer.model.machine import HostFacts, Instance, InstanceState, Offer
from remote_trainer.model.plan import ChosenPreset, Output, OutputKind, Pattern, Plan, PlannedStep, Resources, Retries
from remote_trainer.model.records import Event, LogChunk, Metric, log_stream

__all__ = [
    "SCHEMA",
    "Artifact",
    "Attempt",
    "Checkpoint",
    "ChosenPreset",
    "Chunk",
    "Entry",
    "EntryKind",
    "Event",
    "Facts",
    "HostFacts",
    "Input",
    "Instance",
    "InstanceState",
    "Job",
    "JobId",
    "Lease",
    "Limits",
    "LogChunk",
    "Manifest",
    "Metric",
    "Offer",
    "Output",
    "OutputKind",
    "Pattern",
    "Phase",
    "Place",
    "Plan",
    "PlannedStep",
    "Provision",
    "Reason",
    "Resources",
    "Retries",
    "StepRun",
    "StepState",
    "Strategy",
    "Token",
    "Verdict",
    "log_stream",
]
