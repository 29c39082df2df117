"""A world: a server, Deployments, faults, and what must hold. `run` takes a schedule to its end."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from traceback import format_exception
from typing import Any, NamedTuple

from runtime.names import Names
from runtime.policy import Limits as PolicyLimits
from simulation import faults, invariants
from simulation.deployment import Deployment
from simulation.heap import Heap, Violation
from simulation.link import Link
from simulation.process import Process
from simulation.schedule import Fault, Schedule
from simulation.server import Change, Server
from simulation.serving import Serve

RESTART_S = 1.0
AFTER_S = 6.0
"""How long samples come after the last fault."""


class Limits(NamedTuple):
    """Settings of the simulated fleet: shorter than the defaults, in the same relations."""

    renew_s: float = 2.0
    lease_held_s: float = 8.0
    lease_ttl_s: float = 12.0
    leader_ttl_s: float = 6.0
    silence_s: float = 5.0
    settle_s: float = 1.0
    hold_down_s: float = 4.0
    handoff_s: float = 6.0
    successor_wait_s: float = 2.0
    drain_s: float = 8.0
    request_timeout_s: float = 2.0
    holders_max: int = 20
    workers: int = 2

    @property
    def policy(self) -> PolicyLimits:
        return PolicyLimits(self.holders_max, self.settle_s, self.hold_down_s, self.silence_s, self.renew_s)


SETTLED_WITHIN_S = 60.0
"""After the last fault: the lease and the aftermath of an outage (12 s each), silence, hold-down, two
handoffs that time out (6 s each), containers that start again."""


class Outcome(NamedTuple):
    """*violation* is empty when everything held. *gap_s*: the longest that a sample waited."""

    schedule: Schedule
    violation: str
    events: int
    settled_s: float
    gap_s: float
    zombie_publishes: int
    samples: int
    ring_versions: int
    versions_again: int
    moved: int
    log: list[tuple[float, str]]


class World:
    """*checks_deadline* is false where the deadline is left out on purpose, to see that it is found."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.limits = Limits(holders_max=schedule.holders_max)
        self.heap = Heap()
        self.random = Random(schedule.seed)
        self.checks_deadline = True
        self.settled_s = -1.0
        self.server = Server(
            self.heap, self.limits.lease_ttl_s, self.limits.lease_ttl_s, self.limits.leader_ttl_s
        )
        self.server.on_change = self._on_change
        self.server.on_deleted = self._on_consumer_deleted
        self.links: dict[str, Link] = {}
        self.processes: dict[str, Process] = {}
        self.twins: list[Process] = []
        self.names = Names(partitions=schedule.partitions)
        self.log: list[tuple[float, str]] = []
        self.commit_crash: float | None = None
        self.freeze_in_hand: dict[str, Fault] = {}
        self.watch = invariants.Watch(self)
        self.blue = Deployment(self, "blue", schedule.replicas, 0, True)
        self.deployments = [self.blue]
        if schedule.green:
            self.deployments.append(Deployment(self, "green", schedule.green, 30, False))
        self._begin_samples()

    def _begin_samples(self) -> None:
        samples = []
        end_s = self.schedule.until_s + AFTER_S
        for _ in range(self.schedule.partitions):
            at_s, times = self.random.uniform(0.0, 2.0), []
            while at_s < end_s:
                times.append(at_s)
                at_s += self.random.expovariate(1 / 1.5)
            samples.append(times)
        self.server.begin_streams(samples)

    def run(self) -> None:
        """Raises Violation."""
        for deployment in self.deployments:
            deployment.begin()
        for fault in self.schedule.faults:
            self.heap.at(fault.at_s, faults.inject, self, fault)
        self.heap.run(self.schedule.until_s + 1.0)
        faults.heal(self)
        limit_s = self.schedule.until_s + SETTLED_WITHIN_S
        why: list[str] = ["nothing was looked at"]
        look_s = self.schedule.until_s + AFTER_S + 1.0
        while why and look_s < limit_s:
            self.heap.at(look_s, _nothing)
            self.heap.run(look_s)
            why = invariants.unsettled(self)
            look_s += 1.0
        if why:
            raise Violation(f"not settled {SETTLED_WITHIN_S:g} s after the last fault: {'; '.join(why[:4])}")
        self.settled_s = self.heap.now_s - self.schedule.until_s
        self.watch.at_the_end()

    def add_link(self, uid: str) -> None:
        self.links[uid] = Link(
            self.heap, self.server, self.random, self.limits.request_timeout_s, self.schedule.lag_s
        )

    def note(self, text: str) -> None:
        self.log.append((self.heap.now_s, text))

    # --- between the parts ----------------------------------------------------------------------

    def _on_change(self, change: Change) -> None:
        self.watch.on_change(change)
        now_s = self.heap.now_s
        for process in (*self.processes.values(), *self.twins):
            if not process.is_dead:
                process.wake_at(now_s + 1.5 * self.links[process.pod.uid].lag_s + 1e-4)

    def _on_consumer_deleted(self, partition: int, epoch: int) -> None:
        for process in (*self.processes.values(), *self.twins):
            for worker in process.workers:
                serve = worker.serves.get(partition)
                if serve is not None and serve.epoch == epoch:
                    serve.after(self.links[process.pod.uid].delay_s(), serve.step)

    def kick(self, uid: str) -> None:
        """A pod hears of the world again: its workers ask for what has come."""
        process = self.processes.get(uid)
        if process is None or process.is_dead:
            return
        process.awake_s = self.heap.now_s
        process.wake()
        for worker in process.workers:
            for serve in list(worker.serves.values()):
                serve.after(self.links[uid].delay_s(), serve.step)

    def on_exit(self, process: Process, code: int) -> None:
        """A container that ended starts again, if its pod is not ending."""
        for deployment in self.deployments:
            for kept in deployment.pods:
                if kept.process is process:
                    if kept.is_ending:
                        kept.is_gone = True
                    elif not kept.is_gone:
                        self.heap.after(RESTART_S, deployment.start, kept)

    def request(
        self, sender: Process, uid: str, then: Callable[[Any], None], method: str, *args: Any
    ) -> None:
        """From pod to pod: *then* gets the answer, None without one, "nobody" where nobody listens."""
        link, heap = self.links[sender.pod.uid], self.heap
        answer_by_s = heap.now_s + self.limits.request_timeout_s
        asked = [False]

        def answered(answer: Any) -> None:
            if not asked[0]:
                asked[0] = True
                then(answer)

        heap.at(answer_by_s, sender.run, answered, None)
        if link.is_cut or not self.server.up() or self.random.random() < link.loss:
            return

        def reply(answer: Any) -> None:
            other = self.links[uid]
            if not (other.is_cut or link.is_cut) and self.server.up() and self.random.random() >= other.loss:
                heap.after(other.delay_s() + link.delay_s(), sender.run, answered, answer)

        def arrive() -> None:
            process = self.processes.get(uid)
            if process is None or process.is_dead:
                heap.after(link.delay_s(), sender.run, answered, "nobody")
            elif not self.links[uid].is_cut and self.server.up():
                heap.after(self.links[uid].delay_s(), process.run, getattr(process, method), reply, *args)

        heap.after(link.delay_s(), arrive)

    def about_to_judge(self, serve: Serve) -> None:
        """The place where a pod may be frozen with reports in hand."""
        fault = self.freeze_in_hand.pop(serve.worker.process.pod.uid, None)
        if fault is not None:
            faults.freeze(self, serve.worker.process, fault)

    def about_to_commit(self, process: Process) -> None:
        """The place where a leader may die: before the write is sent, or just after."""
        variant, self.commit_crash = self.commit_crash, None
        if variant is None:
            return
        if variant < 0.4:
            self.note(f"{process.pod.uid} dies before its commit")
            process.exit(137)
        else:
            delay_s = self.links[process.pod.uid].lag_s * (variant - 0.4) * 4
            self.note(f"{process.pod.uid} dies {delay_s * 1e3:.0f} ms after sending its commit")
            self.heap.after(delay_s, process.exit, 137)


def _nothing() -> None:
    pass


def simulate(schedule: Schedule, alter: Callable[[World], None] = lambda _: None) -> Outcome:
    """Run a schedule. *alter* breaks the world before it begins, to see that it is found."""
    world = World(schedule)
    alter(world)
    violation = ""
    try:
        world.run()
    except Violation as found:
        violation = str(found)
    except Exception as error:
        # Whatever a pure part raises is a finding, and shrinks like any other.
        violation = f"raised {type(error).__name__}: {error}\n{''.join(format_exception(error)[-3:])}"
    server = world.server
    return Outcome(
        schedule,
        violation,
        world.heap.done,
        world.settled_s,
        world.watch.longest_gap_s(),
        server.zombie_publishes,
        sum(len(times) for times in server.samples),
        world.watch.version,
        world.watch.versions_again,
        world.watch.moved,
        world.log,
    )
