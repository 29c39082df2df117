"""Certificates and credentials as a platform mounts them: made, rotated, spoiled. With openssl and nkeys."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import nkeys
import pytest

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="certificates are made with openssl"
)
_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_NAMES: Final = "subjectAltName=IP:127.0.0.1"
_UNLIMITED: Final = dict.fromkeys(("subs", "data", "payload"), -1)


class Authority:
    """A CA in *folder*, and the certificates that it signs. `renew` replaces it: what it signed is void."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._number = 0
        self.renew()

    @property
    def ca(self) -> Path:
        """The CA's own certificate, to be trusted."""
        return self.folder / "ca.pem"

    def renew(self) -> None:
        """Another CA of another name, in the same file."""
        self._number += 1
        subject = ("-subj", f"/CN=ca-{self._number}", "-days", "2")
        self._openssl("req", "-x509", *_KEY, *subject, "-keyout", "ca.key", "-out", "new-ca.pem")
        (self.folder / "new-ca.pem").replace(self.ca)

    def issue(self, name: str) -> tuple[Path, Path]:
        """A new certificate for 127.0.0.1 and its key, in the files that *name* had before."""
        (self.folder / "names").write_text(_NAMES)
        self._openssl("req", *_KEY, "-subj", f"/CN={name}", "-keyout", "new.key", "-out", "new.csr")
        signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        self._openssl("x509", "-req", "-in", "new.csr", *signer, "-out", "new.pem")
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        (self.folder / "new.pem").replace(cert)
        (self.folder / "new.key").replace(key)
        return cert, key

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)


class Key:
    """One NKey: of an operator, an account or a user."""

    def __init__(self, kind: int) -> None:
        self.seed = bytes(nkeys.encode_seed(os.urandom(32), kind))
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public = self._pair.public_key.decode()

    def signed(self, name: str, subject: str, claims: dict[str, Any], expires_s: float = 0) -> str:
        """A JWT as NATS wants it; *expires_s*: how long it lives, 0: for ever."""
        now_s = time.time()
        body: dict[str, Any] = {
            "jti": f"{name}-{now_s}",
            "iat": int(now_s),
            "iss": self.public,
            "name": name,
            "sub": subject,
            "nats": {"version": 2, **claims},
        }
        if expires_s:
            body["exp"] = int(now_s + expires_s)
        text = f"{_packed({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_packed(body)}"
        return f"{text}.{_base64(self._pair.sign(text.encode()))}"


class Account:
    """An operator with one account that has JetStream, for nats-server; makes credentials for its users."""

    def __init__(self) -> None:
        self._operator, self._account = Key(nkeys.PREFIX_BYTE_OPERATOR), Key(nkeys.PREFIX_BYTE_ACCOUNT)
        self._system = Key(nkeys.PREFIX_BYTE_ACCOUNT)

    def configuration(self) -> str:
        """What of nats-server's configuration says whom it lets in."""
        names = ("imports", "exports", "conn", "leaf", "mem_storage", "disk_storage", "streams", "consumer")
        limits = {**_UNLIMITED, **dict.fromkeys(names, -1), "wildcards": True}
        preload = []
        for name, key in (("FAB", self._account), ("SYS", self._system)):
            allowed = limits if name == "FAB" else {n: v for n, v in limits.items() if n not in names[4:]}
            claims = {"type": "account", "limits": allowed, "default_permissions": {"pub": {}, "sub": {}}}
            preload.append(f"{key.public}: {self._operator.signed(name, key.public, claims)}")
        operator = self._operator.signed("OP", self._operator.public, {"type": "operator"})
        lines = [f"operator: {operator}", f"system_account: {self._system.public}", "resolver: MEMORY"]
        return "\n".join([*lines, "resolver_preload: {", *preload, "}"])

    def write_credentials(self, path: Path, name: str, expires_s: float = 0) -> str:
        """A new user of a new key in the file; its public key."""
        user = Key(nkeys.PREFIX_BYTE_USER)
        claims = {"type": "user", "pub": {}, "sub": {}, **_UNLIMITED}
        jwt = self._account.signed(name, user.public, claims, expires_s)
        made = path.with_suffix(".new")
        made.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        made.replace(path)
        return user.public


def _packed(tree: dict[str, Any]) -> str:
    return _base64(json.dumps(tree, separators=(",", ":")).encode())


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
