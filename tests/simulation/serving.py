"""A model of a worker: it copies, reads a partition's history, judges what comes, publishes, acknowledges.

Of a partition one batch is in hand at a time. The lease's deadline is looked at before a batch is written; a
process that was frozen between the look and the write writes all the same when it wakes up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from simulation.link import Lane

if TYPE_CHECKING:
    from simulation.process import Process

COPY_S = (0.05, 0.8)
COLD_S = (0.05, 0.5)
WARM_S = (0.002, 0.01)
SESSION_S = (0.03, 0.12)
RESPAWN_S = (0.1, 0.4)


class Serve:
    """One partition that the worker was told to serve."""

    __slots__ = ("acked", "checked", "epoch", "finishing", "generation", "in_hand", "judged", "loaded",
                 "next", "partition", "session", "waiting", "worker")  # fmt: skip

    def __init__(self, worker: Worker, partition: int, epoch: int, generation: int, position: int) -> None:
        self.worker, self.partition, self.epoch, self.generation = worker, partition, epoch, generation
        self.session = worker.session
        self.next = position + 1
        self.acked = position
        self.judged = 0
        self.loaded = False
        self.in_hand = False
        self.checked = False
        self.waiting = False
        self.finishing: Callable[[int], None] | None = None

    def after(self, delay_s: float, action: Callable[..., None], *args: Any) -> None:
        self.worker.process.world.heap.after(delay_s, self.run, action, *args)

    def run(self, action: Callable[..., None], *args: Any) -> None:
        """If the worker's session still stands, when the worker is not frozen."""
        worker = self.worker
        if worker.process.is_dead or worker.session != self.session:
            return
        heap = worker.process.world.heap
        if heap.now_s < worker.frozen_until_s:
            heap.at(worker.frozen_until_s, self.run, action, *args)
            return
        action(*args)

    def call(self, then: Callable[[Any], None], operation: Callable[..., Any], *args: Any) -> None:
        self.worker.lane.call(lambda result: self.run(then, result), operation, *args)

    def load(self) -> None:
        self.call(self._on_loaded, self.worker.process.world.server.newest_verdict, self.partition)

    def _on_loaded(self, last: int | None) -> None:
        if last is None:
            self.worker.break_session()
            return
        self.judged, self.loaded = last, True
        self.worker.tell("serves", self.partition)
        self.step()

    def step(self) -> None:
        """Take what has come, if nothing is in hand."""
        world = self.worker.process.world
        link, server, heap = world.links[self.worker.process.pod.uid], world.server, world.heap
        if not self.loaded or self.in_hand:
            return
        if self.finishing is not None:
            self._finish()
            return
        if link.is_cut or not server.up():
            return  # asked again when the connection is back
        if self.epoch not in server.consumers[self.partition]:
            self.worker.break_session()
            return
        last = server.last_seq(self.partition)
        if self.next > last:
            samples = server.samples[self.partition]
            if self.next <= len(samples) and not self.waiting:
                self.waiting = True
                heap.at(samples[self.next - 1] + link.delay_s(), self.run, self._arrived)
            return
        world.watch.on_take(self)
        fresh = range(max(self.next, self.judged + 1), last + 1)
        self.next = last + 1
        self.in_hand = True
        self.checked = False
        world.about_to_judge(self)
        judge_s = 0.001 + 0.01 * world.random.random()
        if world.random.random() < 0.05:
            judge_s += 0.3
        self.after(judge_s, self._write, fresh, last)

    def _arrived(self) -> None:
        self.waiting = False
        self.step()

    def _write(self, fresh: range, last: int) -> None:
        process = self.worker.process
        if process.clock() >= process.deadline_s and not self.checked and process.world.checks_deadline:
            self.worker.break_session()
            return
        process.world.watch.on_write(self)
        if not fresh:
            self._on_published(last, 0)
            return
        self.judged = last
        server = process.world.server
        self.call(
            lambda new: self._on_published(last, None if new is None else len(fresh) - new),
            server.publish,
            self.partition,
            fresh,
            self.epoch,
            self.generation,
            (process.pod.uid, process.session),
            self.acked,
        )

    def _on_published(self, last: int, dropped: int | None) -> None:
        """*dropped*: how many the server knew already; then our picture was wrong, and the session ends."""
        if dropped is None or dropped:
            self.worker.break_session()
            return
        server = self.worker.process.world.server
        self.call(lambda ack: self._on_acked(last, ack), server.ack, self.partition, self.epoch, last)

    def _on_acked(self, last: int, ack: int | None) -> None:
        if ack is None or ack < 0:
            self.worker.break_session()
            return
        self.acked = max(self.acked, last)
        self.in_hand = False
        self.step()

    def finish(self, then: Callable[[int], None]) -> None:
        self.finishing = then
        if not self.loaded:
            self._finish()
        else:
            self.step()

    def _finish(self) -> None:
        then, self.finishing = self.finishing, None
        del self.worker.serves[self.partition]
        self.session = -1
        assert then is not None
        self.worker.process.world.heap.after(0.001, self.worker.process.run, then, self.acked)


class Worker:
    """One worker process of a pod; *session* is 0 while it has none."""

    def __init__(self, process: Process, index: int) -> None:
        self.process, self.index = process, index
        self.session = 0
        self.sessions = 0
        self.frozen_until_s = 0.0
        self.serves: dict[int, Serve] = {}
        self.copies: dict[int, int] = {}
        self.lane = Lane(process.world.links[process.pod.uid], process)

    def start(self, bounds_s: tuple[float, float] = SESSION_S) -> None:
        world = self.process.world
        world.heap.after(world.random.uniform(*bounds_s), self.process.run, self._begin)

    def _begin(self) -> None:
        if self.process.world.heap.now_s < self.frozen_until_s:
            self.process.world.heap.at(self.frozen_until_s, self.process.run, self._begin)
            return
        self.sessions += 1
        self.session = self.sessions
        self.process.duties_on_ready(self)

    def tell(self, word: str, *args: Any) -> None:
        """A word to the supervisor."""
        session = self.session

        def heard() -> None:
            if self.session == session:
                self.process.on_word(self, word, *args)

        self.process.world.heap.after(0.001, self.process.run, heard)

    def break_session(self, respawn_s: tuple[float, float] = SESSION_S) -> None:
        if not self.session:
            return
        self.session = 0
        finishing = [serve for serve in self.serves.values() if serve.finishing is not None]
        assert all(serve.worker is self for serve in finishing)
        self.serves, self.copies = {}, {}
        heap = self.process.world.heap

        def heard() -> None:
            self.process.duties_on_lost(self)
            self.start(respawn_s)

        heap.after(0.001, self.process.run, heard)

    # --- what the supervisor says ---------------------------------------------------------------

    def copy(self, partition: int) -> None:
        world, session = self.process.world, self.session
        took_s = world.random.uniform(*COPY_S)

        def copied() -> None:
            if self.session == session and self.session and partition in self.copies:
                self.tell("copied", partition)

        self.copies[partition] = world.server.last_verdict[partition]
        world.heap.after(took_s, self.process.run, copied)

    def forget(self, partition: int) -> None:
        self.copies.pop(partition, None)

    def assign(self, partition: int, epoch: int, generation: int, position: int) -> None:
        world = self.process.world
        old = self.serves.get(partition)
        if old is not None:
            old.session = -1
        serve = self.serves[partition] = Serve(self, partition, epoch, generation, position)
        bounds_s = WARM_S if self.copies.pop(partition, None) is not None else COLD_S
        serve.after(world.random.uniform(*bounds_s), serve.load)
