"""The sections of the settings that bound spending. Rules for editing: those of config.py."""

from __future__ import annotations

from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field


class LimitSettings(BaseModel):
    """Bounds of a job that names none of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_hours: float = Field(default=24.0, gt=0, description="hours a job may last, from its first attempt's start")
    max_cost: Decimal = Field(default=Decimal(0), ge=0, description="US dollars a job may cost; 0: no cap")
    max_attempts: int = Field(default=3, ge=1, description="instances a job may use up, one after the other")


class BudgetSettings(BaseModel):
    """What one tenant's jobs may cost, US dollars; 0: no cap."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_day: Decimal = Field(default=Decimal(0), ge=0)
    per_month: Decimal = Field(default=Decimal(0), ge=0)
