"""What JetStream answers: acknowledgements, and its errors as classes that say whether to try again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final, NamedTuple, Protocol

import msgspec

from runtime.errors import DefenderError, JetStreamOff, ServerStorageFull
from runtime.frames import status_of


class Disconnected(DefenderError):
    """The connection ended, or ended before the reply came. What was asked may or may not have happened."""

    exit_code: ClassVar[int] = 69
    temporary: ClassVar[bool] = True


class NoAnswer(DefenderError):
    """The server did not reply in time. What was asked may or may not have happened."""

    exit_code: ClassVar[int] = 69
    temporary: ClassVar[bool] = True


class UnexpectedAnswer(DefenderError):
    """The server answered, but not as it should; in a new session it is asked again."""

    temporary: ClassVar[bool] = True


class PayloadTooLarge(DefenderError):
    """A message is above the server's max_payload; sending it would end the connection."""


TRANSIENT: Final = (Disconnected, NoAnswer, JetStreamOff, ServerStorageFull)
"""Errors of a request that waiting may heal: the same request can be made again."""


class Repeated(DefenderError):
    """The stream has a message already that was to be new: another published it."""

    temporary: ClassVar[bool] = True


class ApiError(DefenderError):
    """JetStream refused a request; *err_code* is the server's number for the cause."""

    def __init__(self, what: str, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{what}: {description} (JetStream error {err_code})")
        self.code = code
        self.err_code = err_code


class NotFound(ApiError):
    """The stream, the consumer or the message does not exist."""


class WrongLastSequence(ApiError):
    """A compare-and-set lost: another wrote in between."""


_API_ERRORS: Final[dict[int, type[ApiError]]] = {
    10014: NotFound,
    10037: NotFound,
    10059: NotFound,
    10071: WrongLastSequence,
    10164: WrongLastSequence,
}
SUBJECTS_A_REQUEST: Final = 256
"""Of a direct get of last messages; the server's limit is 1024 replies."""
_STORAGE_FULL: Final = frozenset({10002, 10023, 10028, 10047, 10077})
_JETSTREAM_OFF: Final = frozenset({10039, 10076})


def api_error(what: str, code: int, err_code: int, description: str) -> DefenderError:
    """The error class of a JetStream error reply; *what* says what was asked."""
    if err_code in _STORAGE_FULL:
        return ServerStorageFull(
            f"{what}: {description} (JetStream error {err_code}); "
            "give nats-server more room (max_file_store, disk) or shorten SAMPLES_MAX_AGE_S"
        )
    if err_code in _JETSTREAM_OFF:
        return JetStreamOff(f"{what}: {description}; switch JetStream on for the server and for our account")
    return _API_ERRORS.get(err_code, ApiError)(what, code, err_code, description)


class Reply(NamedTuple):
    """One reply: its payload, its raw header block."""

    payload: bytes
    headers: bytes | None

    @property
    def status(self) -> bytes:
        """The status of a reply without payload, such as b"503" (nobody answers); b"" when it has none."""
        return status_of(self.headers)


class ApiProblem(msgspec.Struct):
    """The error that an answer carries."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct):
    """The answer to a publish: the message's sequence, and whether the stream had it already."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: ApiProblem | None = None


_pub_ack = msgspec.json.Decoder(PubAck)
_answer = msgspec.json.Decoder(dict[str, Any])


def checked_ack(what: str, reply: Reply) -> PubAck:
    """The acknowledgement of a publish. Raises the error it carries, JetStreamOff when no stream listens."""
    if reply.status == b"503":
        raise JetStreamOff(
            f"{what}: no stream takes this subject; JetStream is off, or the stream was deleted (start again)"
        )
    ack = _pub_ack.decode(reply.payload)
    if ack.error is not None:
        raise api_error(what, ack.error.code, ack.error.err_code, ack.error.description)
    return ack


def checked_answer(what: str, reply: Reply) -> dict[str, Any]:
    """The answer of an API call. Raises the error that it carries, JetStreamOff when nobody answers."""
    if reply.status == b"503":
        raise JetStreamOff(
            f"{what}: the NATS server has no JetStream for our account; "
            "start nats-server with a jetstream block, and switch it on for the account"
        )
    answer = _answer.decode(reply.payload)
    if "error" in answer:
        problem = msgspec.convert(answer["error"], ApiProblem)
        raise api_error(what, problem.code, problem.err_code, problem.description)
    return answer


class CallsSeveral(Protocol):
    """The part of a connection that `last_messages` needs."""

    async def call_several(
        self, subject: str, payload: bytes = b"", *, timeout_s: float = 5.0
    ) -> list[Reply]: ...


async def last_messages(
    connection: CallsSeveral, stream: str, subjects: Sequence[str], timeout_s: float
) -> list[bytes]:
    """The payload of the last message of each of *subjects* that has one, in no order."""
    payloads: list[bytes] = []
    for first in range(0, len(subjects), SUBJECTS_A_REQUEST):
        request = {"multi_last": subjects[first : first + SUBJECTS_A_REQUEST]}
        *replies, end = await connection.call_several(
            f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(request), timeout_s=timeout_s
        )
        if end.status not in (b"204", b"404"):
            raise UnexpectedAnswer(f"{stream}: a get of last messages ended with status {end.status!r}")
        payloads.extend(reply.payload for reply in replies)
    return payloads
