"""What a connection shows to be let in, read from its files: the user's key (NATS_CREDS, NATS_NKEY_SEED) and
TLS certificates (NATS_TLS_*).

The files are read anew whenever a connection is made, so that rotated ones are met without a restart. While a
connection lasts nothing is read: the server looks at certificates in the handshake only, and ends the session
itself when a user's JWT expires.
"""

from __future__ import annotations

import base64
import importlib
import json
import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple
from urllib.parse import urlsplit

from runtime.errors import SettingsError

if TYPE_CHECKING:
    from runtime.config import Settings

INBOX: Final = "_INBOX"
"""First token of the subjects of replies, for who logs in without a name."""
_SEED: Final = rb"\b(S[A-Z2-7]{40,})\b"
_CREDS: Final = rb"BEGIN NATS USER JWT-+\s+(\S+)\s[\s\S]*BEGIN USER NKEY SEED-+\s+" + _SEED


class FileUnusable(SettingsError):
    """A file that a setting names holds nothing usable. It may be half-written, so waiting may help."""

    temporary: ClassVar[bool] = True


class UserKey(NamedTuple):
    """A user's key; *jwt* is empty where the server knows the public key itself."""

    public: str
    jwt: str
    seed: bytes

    def signature(self, nonce: str) -> bytes:
        """The server's challenge, signed; in base64."""
        pair = importlib.import_module("nkeys").from_seed(bytearray(self.seed))
        try:
            return base64.b64encode(pair.sign(nonce.encode()))
        finally:
            pair.wipe()

    def __repr__(self) -> str:
        return f"UserKey({self.public})"


class Shown(NamedTuple):
    """What one attempt to connect shows."""

    key: UserKey | None
    tls: ssl.SSLContext | None


def read(settings: Settings) -> Shown:
    """The files as they are now. Raises FileUnusable, and SettingsError where a package is missing."""
    return Shown(user_key(settings), _tls(settings))


def user_key(settings: Settings) -> UserKey | None:
    """The key of NATS_CREDS or NATS_NKEY_SEED. Raises as `read`."""
    if settings.nats_creds:
        return _key("NATS_CREDS", settings.nats_creds, _CREDS)
    if settings.nats_nkey_seed:
        return _key("NATS_NKEY_SEED", settings.nats_nkey_seed, _SEED)
    return None


def _key(setting: str, path: str, pattern: bytes) -> UserKey:
    """Our own reading: nats-py breaks on a bad file in many ways, and reads an NKey's public half once."""
    try:
        nkeys = importlib.import_module("nkeys")
    except ImportError as error:
        raise SettingsError(setting, "needs the package nkeys: pip install nkeys") from error
    try:
        found = re.search(pattern, Path(path).read_bytes())
    except OSError as error:
        problem = f"{path!r} cannot be read ({error.strerror}): mount the file there"
        raise FileUnusable(setting, problem) from error
    if found is not None:
        seed = found[found.lastindex or 0]
        try:
            pair = nkeys.from_seed(bytearray(seed))
            public = pair.public_key.decode()
            pair.wipe()
            return UserKey(public, found[1].decode() if found.lastindex == 2 else "", seed)
        except (nkeys.NkeysError, UnicodeDecodeError):
            pass  # said below, as for a file without any key
    raise FileUnusable(setting, f"{path!r} holds no valid key; write the file anew, with nsc or nk")


def _tls(settings: Settings) -> ssl.SSLContext | None:
    secure = any(server.startswith(("tls:", "wss:")) for server in settings.servers)
    if not (secure or settings.nats_tls_ca or settings.nats_tls_cert):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.nats_tls_ca or None)
    except OSError as error:  # SSLError is one
        problem = f"{settings.nats_tls_ca!r} is no PEM certificate: {error}"
        raise FileUnusable("NATS_TLS_CA", problem) from error
    if settings.nats_tls_cert:
        try:
            context.load_cert_chain(settings.nats_tls_cert, settings.nats_tls_key or None, lambda: "")
        except OSError as error:
            problem = f"{settings.nats_tls_cert!r} with NATS_TLS_KEY is no PEM pair: {error}"
            raise FileUnusable("NATS_TLS_CERT", problem) from error
    return context


def user_name(settings: Settings) -> str:
    """As whom the server knows us: NATS_USER or the URL's user, a JWT's name, an NKey's public half; "" with
    a token or without a login. Raises as `read`."""
    if settings.nats_user:
        return settings.nats_user
    key = user_key(settings)
    if key is not None:
        return (_jwt_name(key.jwt) if key.jwt else "") or key.public
    parts = [urlsplit(server) for server in settings.servers]
    return next((part.username for part in parts if part.username and part.password), "")


def _jwt_name(jwt: str) -> str:
    """The name that a JWT gives its user; "" without one. The server checks the JWT, we do not."""
    body = jwt.split(".")[1] if jwt.count(".") == 2 else ""
    try:
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except ValueError:
        return ""
    name = claims.get("name") if isinstance(claims, dict) else ""
    return name if isinstance(name, str) else ""


def inbox_of(user: str) -> str:
    """The subject under which a user gets replies: one's own, so that no other user can be let to hear it."""
    return f"{INBOX}_{re.sub(r'[^A-Za-z0-9_-]', '_', user)}" if user else INBOX
