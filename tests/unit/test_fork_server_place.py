"""A pod whose root is read-only and that has no /tmp says so, and what to mount."""

from __future__ import annotations

import tempfile

import pytest

from runtime import fork
from runtime.config import Settings
from runtime.errors import InputError


def test_without_a_folder_for_its_socket_the_fork_server_is_not_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])  # where nothing can be made
    with pytest.raises(InputError, match="mount an emptyDir at /tmp"):
        fork.start_server(Settings())
