"""A worker dies or hangs in the midst of load: every verdict comes once, in order, and is the right one."""

from __future__ import annotations

import random
import signal

from fleet import settings_for, until

from bench.lab.pods import Pod, brisk, is_alive
from runtime.embedded import NatsServer
from runtime.errors import CrashLoop
from tests.load import fleet

SEED = random.SystemRandom().randrange(10**6)


async def test_kill_9_of_workers_at_random_moments_loses_and_doubles_nothing(own_server: NatsServer) -> None:
    """Workers are killed five times under 1,000 reports a second; the streams are the oracle's."""
    settings = settings_for(own_server, **brisk(worker_restarts_max=20))
    rng = random.Random(SEED)
    async with fleet(settings) as outside:
        with Pod(settings) as pod:
            await pod.wait_serving()
            publisher = outside.publisher(seed=SEED)
            publisher.begin()
            for _ in range(5):
                await publisher.more(rng.randrange(200, 800))
                index = rng.randrange(settings.workers)
                dead = pod.kill_worker(index)
                await until(lambda index=index, dead=dead: pod.workers[index] != dead, what="a successor")
            await publisher.more(300)
            stored = await publisher.finish()
            streams = await outside.audit()
            assert len(streams.samples) == stored
            assert pod.metric("defender_worker_restarts_total") == 5


async def test_a_worker_that_hangs_is_aborted_and_its_successor_loses_nothing(own_server: NatsServer) -> None:
    """SIGSTOP of one worker for longer than WORKER_STALL_S: the pod lives on with a new one."""
    settings = settings_for(own_server, **brisk(worker_stall_s=1.5))
    async with fleet(settings) as outside:
        with Pod(settings) as pod:
            await pod.wait_serving()
            publisher = outside.publisher(seed=SEED)
            publisher.begin()
            await publisher.more(500)
            hung = pod.kill_worker(1, signal.SIGSTOP)
            await until(lambda: pod.workers[1] != hung, deadline_s=10.0, what="a successor")
            await publisher.more(300)
            await publisher.finish()
            await outside.audit()
            assert not is_alive(hung)
            assert [line["worker"] for line in pod.lines("worker hangs, aborting")] == [1]
            assert pod.exit_code is None


async def test_a_crash_loop_ends_the_pod_with_its_exit_code(own_server: NatsServer) -> None:
    """More deaths of workers than WORKER_RESTARTS_MAX: the pod leaves with 71 and says why."""
    settings = settings_for(own_server, **brisk(worker_restarts_max=2))
    async with fleet(settings):
        with Pod(settings) as pod:
            await pod.wait_serving()
            for death in range(3):
                dead = pod.kill_worker(0)
                if death < 2:
                    await until(lambda dead=dead: pod.workers[0] != dead, what="a successor")
            assert await pod.wait_exit() == CrashLoop.exit_code
            assert pod.said("3 deaths of workers within 60 s")
            assert not any(is_alive(pid) for pid in pod.workers.values())
