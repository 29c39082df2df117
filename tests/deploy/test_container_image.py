"""The Dockerfile: its steps in a plain folder, since no container engine is needed for what they do."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bench.lab.pods import environment
from runtime.config import Settings
from runtime.embedded import NatsServer

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
LOCK = ROOT / "deploy" / "docker" / "requirements.lock"
INSTALLED = "/opt/defender"
STEP_S_MAX = 300
SIZE_MB_MAX = 400
"""Half of it is LLVM."""


def instructions() -> list[tuple[str, str]]:
    """(instruction, its words), lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]  # type: ignore[misc]


def stage(number: int) -> list[tuple[str, str]]:
    """The instructions of one stage, from its FROM on."""
    begins = [at for at, (name, _) in enumerate(instructions()) if name == "FROM"]
    at = range(len(begins))[number]
    return instructions()[begins[at] : [*begins, None][at + 1]]


def of(found: list[tuple[str, str]], name: str) -> list[str]:
    return [words for instruction, words in found if instruction == name]


def environ_of(found: list[tuple[str, str]]) -> dict[str, str]:
    """What ENV sets, with the defaults of ARG."""
    arguments = dict(words.split("=", 1) for words in of(instructions(), "ARG") if "=" in words)
    pairs = [pair.split("=", 1) for words in of(found, "ENV") for pair in words.split()]
    return {name: re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], value) for name, value in pairs}


def test_the_image_runs_as_nobody_and_needs_no_shell() -> None:
    last = stage(-1)
    assert of(last, "USER") == ["65532:65532"]
    assert of(last, "ENTRYPOINT") == [f'["{INSTALLED}/bin/defender"]']
    assert of(last, "CMD") == ['["run"]']
    assert of(last, "STOPSIGNAL") == ["SIGTERM"]
    assert not of(last, "RUN"), "the last stage only copies"
    labels = " ".join(of(last, "LABEL"))
    for label in ("title", "description", "version", "revision", "created"):
        assert f"org.opencontainers.image.{label}=" in labels


def test_the_image_has_the_python_of_the_project_pinned() -> None:
    (base,) = {words.split()[0] for words in of(instructions(), "FROM")}
    assert base == "python:${PYTHON}"
    python = next(words for words in of(instructions(), "ARG") if words.startswith("PYTHON="))
    assert re.fullmatch(r"PYTHON=3\.11\.\d+-slim-bookworm", python)


def test_what_runs_the_kernels_is_what_compiled_them() -> None:
    build, last = environ_of(stage(0)), environ_of(stage(-1))
    for name in ("NUMBA_CPU_NAME", "NUMBA_CACHE_DIR"):
        assert build[name] == last[name]


def test_its_packages_are_those_that_are_tested() -> None:
    tested = set(re.findall(r"^(\S+==\S+)", (ROOT / "requirements.lock").read_text(), re.M))
    shipped = set(re.findall(r"^(\S+==\S+)", LOCK.read_text(), re.M))
    assert shipped <= tested, "make lock"


def test_nothing_is_copied_that_the_context_leaves_out() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"]
    for words in of(stage(0), "COPY"):
        for source in words.split()[:-1]:
            assert source in allowed, source
            assert (ROOT / source).exists()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the image has in /opt/defender, made by the Dockerfile's own steps; nobody may write there."""
    folder = tmp_path_factory.mktemp("image")
    installed, source = folder / "defender", folder / "src"

    def here(words: str) -> str:
        return words.replace(INSTALLED, str(installed)).replace("/src", str(source))

    environ = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")}
    environ |= {name: here(value) for name, value in environ_of(stage(0)).items()}
    del environ["PIP_NO_CACHE_DIR"]  # it is for the image's size
    environ["PATH"] = f"{Path(sys.executable).resolve().parent}:{environ['PATH']}"
    for name, words in stage(0):
        if name == "COPY":
            *sources, target = words.split()
            for one in sources:
                _copy(ROOT / one, Path(here(target)), is_into=target.endswith("/"))
        elif name == "RUN":
            done = subprocess.run(
                ["sh", "-c", here(words)], env=environ, capture_output=True, text=True, timeout=STEP_S_MAX
            )
            assert done.returncode == 0, done.stdout + done.stderr
    for path in [installed, *installed.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    yield installed
    for path in [installed, *installed.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


def _copy(source: Path, target: Path, *, is_into: bool) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target / source.name if is_into else target)


@pytest.mark.limit_s(420)
def test_what_is_built_runs_and_writes_nothing(built: Path, own_server: NatsServer, tmp_path: Path) -> None:
    last = {name: value.replace(INSTALLED, str(built)) for name, value in environ_of(stage(-1)).items()}
    settings = Settings(nats_servers=own_server.url, http_host="127.0.0.1", http_port=0, cache_mb=20)
    ours = {name: value for name, value in environment(settings).items() if not name.startswith("NUMBA")}
    environ = {**ours, **last, "HTTP_PORT": "0", "TMPDIR": str(tmp_path), "HOME": "/nonexistent"}
    before = {path: path.lstat().st_mtime_ns for path in built.rglob("*")}
    size_mb = sum(path.lstat().st_size for path in built.rglob("*") if not path.is_dir()) / 1e6
    print(f"{size_mb:.0f} MB")
    assert size_mb < SIZE_MB_MAX
    log = tmp_path / "log"
    with log.open("wb") as output:
        pod = subprocess.Popen([built / "bin" / "defender", "run"], env=environ, stdout=output, stderr=output)
    try:
        _wait_for(log, '"event":"ready"', pod)
    finally:
        pod.terminate()
        assert pod.wait(30) == 0, log.read_text()
    assert "kernel" not in log.read_text(), log.read_text()
    assert {path: path.lstat().st_mtime_ns for path in built.rglob("*")} == before


def _wait_for(log: Path, text: str, pod: subprocess.Popen[bytes]) -> None:
    """Until the log has *text*; the pod ends by itself if it cannot go on."""
    while text not in log.read_text():
        try:
            pod.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(log.read_text())


def test_the_manifests_run_the_image_as_it_is() -> None:
    """Same user, same port, and where the root is read-only there is a /tmp."""
    deployment = yaml.safe_load((ROOT / "deploy/kubernetes/track/deployment.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    user = pod["securityContext"]
    assert of(stage(-1), "USER") == [f"{user['runAsUser']}:{user['runAsGroup']}"]
    assert of(stage(-1), "EXPOSE") == [str(port["containerPort"]) for port in container["ports"]]
    assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]
