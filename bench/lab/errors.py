"""What ends a run of the lab."""

from __future__ import annotations

from runtime.errors import DefenderError


class LabError(DefenderError):
    """A run cannot begin or go on: the message says what, and what to do."""


class ScenarioError(LabError):
    """A scenario or a budget is not one."""

    exit_code = 64


class NotInTime(LabError):
    """Something did not happen within its limit."""
