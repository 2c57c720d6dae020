"""What one save adds to a job's document: the pure half of the MongoDB store's save.

Rules for editing: no I/O; the guarantees are explained in mongo.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remote_trainer.document import to_json
from remote_trainer.errors import InvariantBroken
from remote_trainer.model import Event, JobId, Metric
from remote_trainer.ports import Change
from remote_trainer.store import records

Document = dict[str, Any]

#: Bytes one save may add to one job: MongoDB's documents end at 16 MiB.
LARGEST = 12 << 20

#: What a save reads of a job's document.
FIELDS = ("token", "saves", "streams", "counts", "tail")


@dataclass(slots=True)
class Tail:
    """A job's newest records, its streams' sizes and its counters, while changes are added to them."""

    job_id: JobId
    streams: dict[str, int]
    counts: dict[str, int]
    records: list[Document]
    logs: list[Document]
    columns: Document
    entries: list[str]  # of the ledger, on their way there
    there: set[tuple[str, str]]  # records (kind, body) that are not to be added again

    @classmethod
    def behind(cls, document: Mapping[str, Any], *, repeated: bool) -> Tail:
        """Return the empty tail that follows what the document says; ``repeated``: that may hold what will be added."""
        streams = {each["name"]: each["size"] for each in document["streams"]}
        there = {(each["kind"], each["body"]) for each in document["tail"]["records"]} if repeated else set()
        return cls(document["_id"], streams, dict(document["counts"]), [], [], {}, [], there)

    def add(self, change: Change) -> None:
        """Add a change; InvariantBroken for a gap in a log, another job's document, or too much at once."""
        if change.job is not None:
            if change.job.id != self.job_id:
                raise InvariantBroken(f"a change of job {self.job_id} carries the document of job {change.job.id}")
            job = change.job
            self.columns = {"phase": job.phase, "finished": job.phase.terminal, "schema": job.schema, "priority": job.priority}
            self.columns["document"] = to_json(job).decode()
        for event in change.events:
            self._record("event", event)
        for metric in change.metrics:
            self._record("metric", metric)
        self.entries += [to_json(entry).decode() for entry in change.entries]
        for chunk in change.logs:
            size = self.streams.setdefault(chunk.stream, 0)
            if data := records.new_part(self.job_id, chunk, size):
                self.logs.append({"job": self.job_id, "stream": chunk.stream, "start": size, "bytes": data})
                self.streams[chunk.stream] = size + len(data)

        self._check_size()

    def fields(self) -> Document:
        """Return what is set in the job's document."""
        return {
            **self.columns,
            "streams": [{"name": name, "size": size} for name, size in self.streams.items()],
            "counts": self.counts,
            "tail": {"records": self.records, "logs": self.logs},
        }

    def _check_size(self) -> None:
        bodies = sum(len(each["body"]) for each in self.records) + len(self.columns.get("document", ""))
        size = bodies + sum(len(each["bytes"]) for each in self.logs)
        if size > LARGEST:
            raise InvariantBroken(f"job {self.job_id}: one save holds {size} bytes, MongoDB takes {LARGEST}: save in parts")

    def _record(self, kind: str, value: Event | Metric) -> None:
        body = to_json(value).decode()
        if (kind, body) not in self.there:
            self.counts[kind] += 1
            self.records.append({"job": self.job_id, "kind": kind, "seq": self.counts[kind], "body": body})


def grouped(changes: Sequence[Change]) -> dict[JobId, list[Change]]:
    """Return the changes by job, in order."""
    by_job: dict[JobId, list[Change]] = {}
    for change in changes:
        by_job.setdefault(change.job_id, []).append(change)
    return by_job
