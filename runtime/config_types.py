"""The types of the settings' fields, with what each must look like."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta


def text(form: str, pattern: str) -> Meta:
    return Meta(pattern=pattern, extra={"form": form})


Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Age = Annotated[int, Meta(ge=1, le=10 * 366 * 86_400)]
File = Annotated[str, Meta(extra={"file": True})]
Secret = Annotated[str, Meta(extra={"secret": True})]
Token = Annotated[str, text("a word of letters, digits, - and _", r"^[A-Za-z0-9_-]{1,64}\Z")]
Label = Annotated[
    str,
    text("letters, digits, -, _ and dots inside", r"^[A-Za-z0-9_-]([A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?\Z"),
]
