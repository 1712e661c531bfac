"""A Valkey whose users come from the shipped access lists, and what it says of commands that it denied."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from tests.servers import ValkeyServer
from tests.support import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping

LISTS = Path(__file__).parent.parent / "deploy" / "redis"
USERS = ("worker", "manager", "producer", "viewer", "operator", "flower")


class GuardedValkey(ValkeyServer):
    """Listens on its unix socket and on a TCP port; `guard` puts the shipped users in the place of the default one.

    Args:
        home: As for every embedded server.
        passwords: By user; those that are not named have `<user>-password`.
    """

    def __init__(self, home: Path, passwords: Mapping[str, str] | None = None) -> None:
        super().__init__(home)
        self.port = free_port()
        self.passwords = {user: f"{user}-password" for user in USERS} | dict(passwords or {})

    @property
    def users(self) -> Path:
        """The access list that the server loads."""
        return self.home / "users.acl"

    def _command(self, program: Path) -> list[str]:
        self.users.write_text("user default on nopass ~* &* +@all\n")
        tcp = ["--bind", "127.0.0.1", "--port", str(self.port)]
        return [*super()._command(program), *tcp, "--aclfile", str(self.users)]

    def guard(self, name: str, prefix: str) -> None:
        """Fill in a shipped list as the guide says, and load it; `admin` is a user of the test's own."""
        text = (LISTS / name).read_text(encoding="utf-8").replace("@PREFIX@", prefix)
        for user, password in self.passwords.items():
            text = text.replace(f"@{user.upper()}@", hashlib.sha256(password.encode()).hexdigest())
        self.users.write_text(text + "user admin on >admin-password ~* &* +@all\n", encoding="utf-8")
        with self.client() as client:
            client.acl_load()

    def url_of(self, user: str, *, socket: bool = False) -> str:
        """The broker's URL with the name and the password of a shipped user."""
        login = f"batching-{user}:{self.passwords[user]}"
        return f"redis+socket://{login}@{self.socket}?virtual_host=0" if socket else self._tcp(login)

    @property
    def admin_url(self) -> str:
        """The broker's URL for whoever may do everything."""
        return self._tcp("admin:admin-password")

    def admin(self) -> redis.Redis:
        """A client that may do everything; the caller closes it."""
        return redis.Redis.from_url(self.admin_url, socket_timeout=5, decode_responses=True)

    def as_user(self, user: str) -> redis.Redis:
        """A client with the rights of a shipped user; the caller closes it."""
        return redis.Redis.from_url(self.url_of(user), socket_timeout=5, decode_responses=True)

    def denied(self) -> list[str]:
        """What the server refused since it was guarded: user, reason, command or key."""
        with self.admin() as client:
            entries: list[dict[str, Any]] = client.acl_log()
        return [f"{entry['username']}: {entry['reason']} {entry['object']} x {entry['count']}" for entry in entries]

    def _tcp(self, login: str) -> str:
        return f"redis://{login}@127.0.0.1:{self.port}/0"
