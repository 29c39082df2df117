"""The cost of a pod's deletion, how long a failure is left alone, and what a cluster tells its pods."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.lab.kube_api import INT32, merge_patch
from runtime import deletion_cost
from runtime.config import ID_MAX, Identity, Settings
from runtime.deletion_cost import (
    PACE_S,
    REFUSED_S,
    RETRY_FIRST_S,
    RETRY_MOST_S,
    SPREAD_S,
    DeletionCost,
    cost,
    pause_s,
)
from runtime.identity import stable_id
from runtime.kubernetes_api import ApiRefused, ApiServer, ApiUnanswered, ApiUnusable

UNSAID = 0
"""What Kubernetes takes of a pod without the annotation."""


def test_the_highest_id_goes_first_before_it_a_pod_that_says_nothing_and_before_all_an_idle_one() -> None:
    ids = [stable_id(number) for number in (0, 1, 2, 9, 10, 99, 100, ID_MAX)]
    costs = [cost(None), UNSAID, *(cost(one) for one in reversed(ids))]
    assert costs == sorted(set(costs))
    assert all(one in INT32 for one in costs)


def pauses(error: Any, attempt: int) -> list[float]:
    return [pause_s(error, attempt, random.Random(seed)) for seed in range(50)]


@pytest.mark.parametrize("error", [ApiRefused(status, "") for status in (400, 403, 404, 415, 422)])
def test_a_refusal_that_waiting_does_not_heal_is_left_alone_for_minutes(error: ApiRefused) -> None:
    assert min(pauses(error, 0)) >= REFUSED_S / 2
    assert max(pauses(error, 50)) <= REFUSED_S


@pytest.mark.parametrize(
    "error", [ApiUnanswered(""), *(ApiRefused(status, "") for status in (401, 409, 429, 500, 503))]
)
def test_a_failure_that_may_pass_is_left_alone_for_longer_and_longer_up_to_a_limit(error: Any) -> None:
    assert min(pauses(error, 0)) >= PACE_S
    assert max(pauses(error, 0)) <= max(PACE_S, RETRY_FIRST_S)
    assert min(pauses(error, 3)) >= 4 * RETRY_FIRST_S
    assert min(pauses(error, 50)) >= RETRY_MOST_S / 2
    assert max(pauses(error, 5_000)) <= RETRY_MOST_S
    assert len(set(pauses(error, 3))) > 10  # no two pods come back at once


def test_a_server_that_names_a_time_is_given_it_within_limits() -> None:
    asked = pauses(ApiRefused(429, "", retry_after_s=60.0), 0)
    assert min(asked) >= 60.0
    assert max(asked) <= 60.0 + SPREAD_S
    assert max(pauses(ApiRefused(429, "", retry_after_s=1e9), 0)) <= RETRY_MOST_S + SPREAD_S


def test_outside_of_a_cluster_there_is_no_api_server() -> None:
    assert ApiServer.discovered({}, Path("/nowhere")) is None
    assert ApiServer.discovered({"KUBERNETES_SERVICE_HOST": ""}, Path("/nowhere")) is None


def test_a_cluster_of_ipv6_has_its_address_in_brackets_and_a_port_must_be_one() -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    server = ApiServer.discovered(environ, Path("/nowhere"))
    assert server is not None
    assert server.address == "[fd00::1]:443"
    with pytest.raises(ApiUnusable, match="KUBERNETES_SERVICE_PORT is 'tcp://"):
        ApiServer.discovered({**environ, "KUBERNETES_SERVICE_PORT": "tcp://10.0.0.1:443"}, Path("/nowhere"))


@pytest.mark.parametrize("changes", [{"identity": Identity.ORDINAL}, {"pod_deletion_cost": "off"}, {}])
async def test_where_there_is_nothing_to_say_the_task_ends_and_asks_nobody(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A StatefulSet; the setting; no cluster."""
    monkeypatch.setattr(deletion_cost.ApiServer, "patch_pod", None)
    cluster = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"} if changes else {}
    settings = msgspec.convert(changes, type=Settings)
    kept = DeletionCost(settings, cluster, random.Random(1))
    kept.want("defender-1")
    await kept.run()
    assert kept.written is None
    assert not any(kept.requests.values())
    assert not caplog.records


@pytest.mark.parametrize(
    ("target", "patch", "merged"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ({"a": "foo"}, None, None),
    ],
)
def test_the_labs_api_server_merges_as_the_rfc_has_it(target: Any, patch: Any, merged: Any) -> None:
    """Examples of RFC 7386, appendix A."""
    assert merge_patch(target, patch) == merged
