"""The error tree: one root, a class a cause.

A message says what was wrong, with which value, and what to do about it. ``exit_code`` is what
``defender run`` leaves with when the error ends the process; ``temporary`` says that waiting may help.
"""

from __future__ import annotations

from typing import ClassVar


class DefenderError(Exception):
    """Root of every error that Defender raises on purpose; shown to a person without a stack trace."""

    exit_code: ClassVar[int] = 70
    temporary: ClassVar[bool] = False


class SettingsError(DefenderError):
    """A setting, or the relation between two, is wrong."""

    exit_code = 64

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting}: {problem}")
        self.setting = setting


class InputError(DefenderError):
    """A file or an argument that a person gave cannot be used."""

    exit_code = 65


class ServerUnreachable(DefenderError):
    """No NATS server answered."""

    exit_code = 69
    temporary = True


class CredentialsRefused(DefenderError):
    """The NATS server, or Cassandra, refused our credentials."""

    exit_code = 77
    temporary = True


class JetStreamOff(DefenderError):
    """The NATS server, or our account on it, has JetStream switched off."""

    exit_code = 69
    temporary = True


class ServerStorageFull(DefenderError):
    """The server has no room to store messages."""

    exit_code = 69
    temporary = True


class ResourceDiffers(DefenderError):
    """A stream or a bucket exists with settings that would break a promise."""

    exit_code = 78


class HistoryUnreachable(DefenderError):
    """No node of the history's store answered."""

    exit_code = 69
    temporary = True


class HistoryDiffers(DefenderError):
    """The history's store has no schema, one of another version, or rows that this version cannot read."""

    exit_code = 78


class Fenced(DefenderError):
    """The lease ran out, or another holds the ID: nothing may be published any more."""

    exit_code = 76


class IllegalTransition(DefenderError):
    """A state change that the table of legal changes does not know."""

    def __init__(self, machine: str, before: str, after: str) -> None:
        super().__init__(f"{machine}: {before} -> {after} is not a legal change of state")
        self.before = before
        self.after = after


class CacheTooSmall(DefenderError):
    """A chamber has more charts than the whole cache has slots."""

    exit_code = 64


class CrashLoop(DefenderError):
    """A worker dies again and again; the pod gives up so that the platform sees it."""

    exit_code = 71
