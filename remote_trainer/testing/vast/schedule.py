"""The provider's own scheduler: requests it makes by itself, on the hour.

Rules for editing: a job fires at minute 0 of every hour from the hour that contains its start, which may be before the start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_HOUR_S = 3600


@dataclass(slots=True, kw_only=True)
class Job:
    """One scheduled request."""

    id: int
    instance: int | None
    endpoint: str
    method: str
    body: dict[str, Any]
    start: float
    end: float
    due: float
    frequency: str = "HOURLY"
    last: float | None = None

    def document(self) -> dict[str, Any]:
        """Return the row as it is listed."""
        return {
            "id": self.id,
            "instance_id": self.instance,
            "api_endpoint": self.endpoint,
            "request_method": self.method,
            "request_body": self.body,
            "start_time": self.start,
            "end_time": self.end,
            "frequency": self.frequency,
            "day_of_the_week": None,
            "hour_of_the_day": None,
            "min_of_the_hour": 0,
            "last_executed_around": self.last,
            "status": "active",
        }


@dataclass(slots=True)
class Schedule:
    """All scheduled requests of an account."""

    jobs: dict[int, Job] = field(default_factory=dict)
    _next: int = 1

    def add(self, body: dict[str, Any], now: float) -> Job:
        """Add one."""
        job = self._made(self._next, body, now)
        self._next += 1
        self.jobs[job.id] = job
        return job

    def replace(self, job_id: int, body: dict[str, Any], now: float) -> Job:
        """Change one; what is not said stays."""
        self.jobs[job_id] = self._made(job_id, {**self.jobs[job_id].document(), **body}, now)
        return self.jobs[job_id]

    def of_instance(self, instance: object) -> Job | None:
        """Return the job of an instance."""
        return next((job for job in self.jobs.values() if instance is not None and job.instance == instance), None)

    def next_due(self) -> float | None:
        """Return when the next one fires."""
        return min((job.due for job in self.jobs.values() if job.due <= job.end), default=None)

    def fire(self, now: float) -> list[Job]:
        """Return what fires now, and set each to its next hour."""
        due = [job for job in self.jobs.values() if job.due <= min(now, job.end)]
        for job in due:
            job.last, job.due = now, job.due + _HOUR_S
        return due

    @staticmethod
    def _made(job_id: int, body: dict[str, Any], now: float) -> Job:
        start = float(body["start_time"])
        due = start // _HOUR_S * _HOUR_S
        if due < now:  # the slot has passed
            due = max(due, (now // _HOUR_S + 1) * _HOUR_S)
        return Job(
            id=job_id,
            instance=body.get("instance_id"),
            endpoint=str(body["api_endpoint"]),
            method=str(body.get("request_method", "DELETE")),
            body=dict(body.get("request_body") or {}),
            start=start,
            end=float(body.get("end_time") or start + 24 * _HOUR_S),
            due=due,
            frequency=str(body.get("frequency") or "HOURLY"),
        )
