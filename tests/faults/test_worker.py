"""A worker dies or hangs in the midst of load: every verdict comes once, in order, and is the right one."""

from __future__ import annotations

import random
import time

from fleet import settings_for, until
from load import fleet
from pods import Pod, brisk

from runtime.embedded import NatsServer

SEED = random.SystemRandom().randrange(10**6)


async def test_kill_9_of_workers_at_random_moments_loses_and_doubles_nothing(own_server: NatsServer) -> None:
    """Both workers are killed several times under 1,000 reports a second; the streams are the oracle's."""
    settings = settings_for(own_server, **brisk(worker_restarts_max=20))
    rng = random.Random(SEED)
    async with fleet(settings) as outside:
        with Pod(settings) as pod:
            await pod.wait_serving()
            publisher = outside.publisher(seed=SEED)
            publisher.begin()
            for _ in range(5):
                moment = time.monotonic() + rng.uniform(0.3, 0.9)
                await until(lambda moment=moment: time.monotonic() >= moment)
                index = rng.randrange(settings.workers)
                dead = pod.kill_worker(index)
                await until(lambda index=index, dead=dead: pod.workers[index] != dead)
            stored = await publisher.finish()
            streams = await outside.audit()
            assert len(streams.samples) == stored
            assert pod.metric("defender_worker_restarts_total") == 5
