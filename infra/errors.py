"""Errors that a user can cause. Their text names the value, what was expected and what to do."""

from __future__ import annotations


class CalummaError(Exception):
    """Base of the errors that the command line prints without a stack trace."""


class RecipeError(CalummaError):
    """The recipe has an unknown key, a value out of range, or sections that contradict each other."""


class StoreError(CalummaError):
    """A stored file is missing, damaged, of a newer format, or does not belong to what was asked for."""


class SourceError(CalummaError):
    """A source as a whole cannot be read: its path, package or options are wrong."""


class ResourceError(CalummaError):
    """The machine or cluster lacks something: disk, memory, a port, workers."""


class AccessError(ResourceError):
    """A storage refuses everybody who asks as we do, until somebody mends it: rights, credentials, bucket, address.

    Whoever bears the failure of one file must let this one through: every other file would fail alike.
    """


class StepFailed(CalummaError):
    """A step's job ended without committing its manifest."""


class StepStopped(StepFailed):
    """A step was asked to stop and did so in order; run again, it goes on where it was."""
