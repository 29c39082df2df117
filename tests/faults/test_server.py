"""The NATS server dies, or runs out of room, under a running defender."""

from __future__ import annotations

import random

from fleet import settings_for, until

from bench.lab.pods import Pod, brisk
from runtime.embedded import NatsServer
from tests.load import fleet

SEED = random.SystemRandom().randrange(10**6)
PATIENT = {"lease_ttl_s": 30.0, "lease_held_s": 20.0, "heartbeat_ttl_s": 30.0}


async def test_kill_9_of_nats_server_and_its_restart_on_its_store_loses_and_doubles_nothing(
    own_server: NatsServer,
) -> None:
    """Twice under load, for less than a lease: the same pod goes on."""
    settings = settings_for(own_server, **brisk(**PATIENT))
    rng = random.Random(SEED)
    async with fleet(settings) as outside:
        with Pod(settings) as pod:
            await pod.wait_serving()
            publisher = outside.publisher(seed=SEED)
            publisher.begin()
            for _ in range(2):
                await publisher.more(rng.randrange(500, 1000))
                own_server.kill()
                await until(lambda: pod.not_ready(), what="/readyz says no")
                assert "no connection to NATS" in str(pod.not_ready())
                await own_server.start_async()
            await publisher.more(300)
            await publisher.finish()
            await outside.audit()
            await pod.wait_ready()
            assert len(pod.lines("claimed")) == 1
