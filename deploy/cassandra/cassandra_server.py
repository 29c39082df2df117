"""A one-node Apache Cassandra 5.0 as a child process, without a container engine: `make cassandra`, tests.

The jars come through Maven (pom.xml) into a folder that git ignores; Java has to be 17 (18 and later lack
the security manager that Cassandra 5.0 uses). The server listens on the loopback only, on free ports, keeps
its data in one folder, and dies with us (``PR_SET_PDEATHSIG``).

    new ──start──► running ──stop/kill──► stopped ──start──► running   (same ports, same data)
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import yaml

from runtime.lifeline import die_with

HOST: Final = "127.0.0.1"
DATACENTER: Final = "datacenter1"
START_S_MAX: Final = 120.0
STOP_S_MAX: Final = 30.0
FETCH_S_MAX: Final = 600.0
ROOM_BYTES: Final = 4_000_000_000
_POLL_S: Final = 0.05
_HERE: Final = Path(__file__).resolve().parent
JARS: Final = _HERE.parents[1] / ".cassandra"
_JAVA_HOMES: Final = ("/usr/lib/jvm",)


class CannotStart(Exception):
    """Why there is no server here; the text names the remedy."""


@cache
def java() -> str:
    """A Java 17. Raises CannotStart without one."""
    tried = []
    homes = [os.environ.get("JAVA_HOME", "")]
    homes += [str(home) for folder in _JAVA_HOMES for home in sorted(Path(folder).glob("*17*"))]
    for candidate in [*(f"{home}/bin/java" for home in homes if home), shutil.which("java") or ""]:
        if candidate and os.access(candidate, os.X_OK):
            told = subprocess.run([candidate, "-version"], capture_output=True, text=True, check=False).stderr
            if re.search(r'version "17[."]', told):
                return candidate
            tried.append(f"{candidate} is {told.splitlines()[0] if told else 'silent'}")
    found = f" ({'; '.join(tried)})" if tried else ""
    raise CannotStart(f"Cassandra 5.0 needs Java 17{found}; install a JRE 17 or point JAVA_HOME at one")


def is_possible() -> bool:
    """Whether this machine has what it takes: Java 17 and Maven, or the jars already."""
    try:
        java()
    except CannotStart:
        return False
    return shutil.which("mvn") is not None or _is_fetched()


def _is_fetched() -> bool:
    stamp = JARS / ".pom"
    return stamp.is_file() and stamp.read_bytes() == (_HERE / "pom.xml").read_bytes()


def fetch() -> Path:
    """The folder of the jars, fetched unless they are there. Raises CannotStart."""
    if _is_fetched():
        return JARS
    maven = shutil.which("mvn")
    if maven is None:
        raise CannotStart("the jars of Cassandra come through Maven; install mvn (Debian: maven)")
    shutil.rmtree(JARS, ignore_errors=True)
    command = [maven, "-B", "-q", "-f", str(_HERE / "pom.xml"), "dependency:copy-dependencies"]
    command += [f"-DoutputDirectory={JARS}", "-DincludeScope=runtime"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S_MAX, check=False)
    except subprocess.TimeoutExpired:
        problem = f"Maven brought no jars within {FETCH_S_MAX:g} s; run: {' '.join(command)}"
        raise CannotStart(problem) from None
    if done.returncode:
        raise CannotStart(f"Maven brought no jars:\n{(done.stdout + done.stderr)[-2000:]}")
    (JARS / ".pom").write_bytes((_HERE / "pom.xml").read_bytes())
    return JARS


class CassandraServer:
    """One node. *data* is kept when given, else it is a temporary folder that `close` removes.

    *options* go into cassandra.yaml over ours (``authenticator``, ``client_encryption_options``, timeouts),
    *environment* into the process's environment; both may be changed between two starts.
    """

    def __init__(
        self,
        data: Path | None = None,
        *,
        port: int = 0,
        options: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._temporary = data is None
        self.folder = (
            Path(tempfile.mkdtemp(prefix="defender-cassandra-", dir=_in_memory())) if data is None else data
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log_path = self.folder / "cassandra.log"
        self.port, self._storage_port = port, 0
        self.options, self.environment = options or {}, environment or {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def contact_point(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def configuration(self) -> dict[str, Any]:
        """What is in cassandra.yaml."""
        folder = self.folder
        return {
            "cluster_name": "defender",
            "num_tokens": 1,
            "initial_token": "0",
            "partitioner": "org.apache.cassandra.dht.Murmur3Partitioner",
            "auto_bootstrap": False,
            "endpoint_snitch": "SimpleSnitch",
            "seed_provider": [
                {
                    "class_name": "org.apache.cassandra.locator.SimpleSeedProvider",
                    "parameters": [{"seeds": f"{HOST}:{self._storage_port}"}],
                }
            ],
            "listen_address": HOST,
            "rpc_address": HOST,
            "storage_port": self._storage_port,
            "native_transport_port": self.port,
            "start_native_transport": True,
            "data_file_directories": [str(folder / "data")],
            "commitlog_directory": str(folder / "commitlog"),
            "saved_caches_directory": str(folder / "saved_caches"),
            "hints_directory": str(folder / "hints"),
            "cdc_raw_directory": str(folder / "cdc_raw"),
            "commitlog_sync": "periodic",
            "commitlog_sync_period": "10000ms",
            "commitlog_segment_size": "16MiB",
            "commitlog_total_space": "512MiB",
            "disk_failure_policy": "stop",
            "commit_failure_policy": "stop",
            "memtable_allocation_type": "offheap_objects",
            "memtable_heap_space": "128MiB",
            "memtable_offheap_space": "256MiB",
            "key_cache_size": "16MiB",
            "file_cache_size": "64MiB",
            "concurrent_reads": 8,
            "concurrent_writes": 8,
            "concurrent_compactors": 1,
            "hinted_handoff_enabled": False,
            "batch_size_warn_threshold": "64KiB",
            "authenticator": "AllowAllAuthenticator",
            **self.options,
        }

    def start(self) -> Self:
        """Starts and waits until clients are served. Raises CannotStart with the log's end."""
        self.launch()
        assert self._process is not None
        deadline_s = time.monotonic() + START_S_MAX
        while not self.serves():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.kill()
                raise CannotStart(f"Cassandra did not start:\n{self._log_end()}")
            time.sleep(_POLL_S)
        return self

    def launch(self) -> None:
        """Starts and does not wait: `serves` tells. Dies with the *thread* that calls this."""
        assert not self.running, "it runs"
        jars = fetch()
        _check_free(self.port)
        self.port = self.port or _free_port()
        self._storage_port = self._storage_port or _free_port()
        settings = self.folder / "cassandra.yaml"
        settings.write_text(yaml.safe_dump(self.configuration(), sort_keys=False))
        command = [java(), f"@{_HERE / 'jvm17.options'}"]
        command += [f"-javaagent:{jam}" for jam in jars.glob("jamm-*.jar")]
        command += [
            f"-Dcassandra.config=file:{settings}",
            f"-Dcassandra.storagedir={self.folder}",
            f"-Dlogback.configurationFile={_HERE / 'logback.xml'}",
            f"-Ddefender.log={self.log_path}",
            "-cp",
            f"{jars}/*",
            "org.apache.cassandra.service.CassandraDaemon",
        ]
        parent_pid = os.getpid()
        out = (self.folder / "stdout.log").open("ab")
        with out:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                preexec_fn=lambda: die_with(parent_pid),
                start_new_session=True,
                env=os.environ | self.environment,
            )

    def serves(self) -> bool:
        """Whether it takes connections of clients."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0):
                return True
        except OSError:
            return False

    def _log_end(self) -> str:
        """The last errors of its logs; without any, their last lines."""
        texts = [path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log"))]
        lines = [line for text in texts for line in text.splitlines()]
        told = [line for line in lines if line.startswith("Caused by") or " ERROR " in line]
        return "\n".join((told or lines)[-5:])

    def stop(self) -> None:
        """SIGTERM: the server drains and leaves. The data stays."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as a crash. The data stays as it is."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: it accepts connections (the kernel does) and answers nothing, until `thaw`.

        Returns when all of its threads stand still: a busy one may answer until then.
        """
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)  # a frozen one obeys nothing but SIGKILL
            self._process.send_signal(how)
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Ends it; removes a temporary folder."""
        self.kill()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _in_memory() -> str | None:
    """Where data is kept that nobody keeps: in memory if there is room, for a node's flushes hold up whatever
    else writes to the disk."""
    folder = Path("/dev/shm")
    if folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > ROOM_BYTES:
        return str(folder)
    return None


def _check_free(port: int) -> None:
    if not 0 <= port < 65_536:
        raise CannotStart(f"there is no port {port}: choose one up to 65535, or 0 for a free one")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            problem = (
                f"port {port} cannot be used ({error.strerror}): choose another one, or 0 for a free one"
            )
            raise CannotStart(problem) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """`make cassandra`: runs one until it is interrupted."""
    parser = argparse.ArgumentParser(description="A one-node Cassandra 5.0 on the loopback.")
    parser.add_argument("--data", type=Path, help="folder of its data, kept; default: a temporary one")
    parser.add_argument("--port", type=int, default=9042, help="of CQL; 0 takes a free one")
    parser.add_argument("--fetch", action="store_true", help="only fetch the jars")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = None
    try:
        print("fetching the jars, unless they are there ...", file=sys.stderr)
        fetch()
        if chosen.fetch:
            return 0
        print("starting Cassandra, about 10 s ...", file=sys.stderr)
        server = CassandraServer(chosen.data, port=chosen.port)
        server.start()
        print(json.dumps({"contact_point": server.contact_point, "pid": server.pid}), flush=True)
        print(
            f"HISTORY=cassandra CASSANDRA_CONTACT_POINTS={server.contact_point} defender init\n"
            f"Ctrl-C ends it. Log: {server.log_path}",
            file=sys.stderr,
        )
        while server.running:
            time.sleep(0.5)
        print(f"Cassandra ended by itself; see {server.log_path}", file=sys.stderr)
        return 1
    except CannotStart as error:
        print(f"error: {error}", file=sys.stderr)
        return 69
    except KeyboardInterrupt:
        return 130
    finally:
        if server is not None:
            server.close()


if __name__ == "__main__":
    sys.exit(main())
