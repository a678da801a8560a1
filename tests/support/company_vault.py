"""A vault that is somebody else's: an OpenBao that no deployment starts, its administrator, and who takes its place.

Its certificate is of an authority of its own; its listener asks for client certificates, and serves who has none as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from tallystick.infra import embedded
from tallystick.infra.vault import server
from tallystick.runtime.vault import setup
from tallystick.runtime.vault.client import VaultClient
from tests.support.tls import ServerTls, make_server_tls

HOST = "127.0.0.1"


class CompanyVault:
    """One server and what its people hold: `root` and the unseal key.  It ends with the thread that starts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tls = make_server_tls(folder)
        self.port = embedded.free_port(HOST)
        self.address = f"https://{HOST}:{self.port}"
        self.audit = folder / "audit.jsonl"
        self._config = folder / "server.json"
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "data").mkdir()
        self._config.write_text(json.dumps(self._settings()))
        self.start()
        with self._client() as client:
            self._unseal_key, self.root = client.initialize()
        self.unseal()

    def _settings(self) -> dict[str, Any]:
        cluster = f"{HOST}:{embedded.free_port(HOST)}"
        return {
            "storage": {"raft": {"path": str(self.folder / "data"), "node_id": "one", "performance_multiplier": "1"}},
            "listener": [
                {
                    "tcp": {
                        "address": f"{HOST}:{self.port}",
                        "cluster_address": cluster,
                        "tls_cert_file": str(self.tls.certificate),
                        "tls_key_file": str(self.tls.key),
                    }
                }
            ],
            "cluster_addr": f"https://{cluster}",
            "api_addr": self.address,
            "audit": [
                {"file": {"file": {"description": "all", "options": {"file_path": str(self.audit)}}}},
            ],
        }

    def start(self) -> None:
        """Start it, sealed."""
        with (self.folder / "server.log").open("ab") as log:
            arguments = [server.find_server(), "server", f"-config={self._config}"]
            self._process = embedded.launch(arguments, (), log.fileno(), server.VARIABLES)
        embedded.await_tls(self._process, HOST, self.port, self._refused)

    def _refused(self) -> Any:
        return AssertionError((self.folder / "server.log").read_text()[-2000:])

    def unseal(self) -> None:
        """As its people do."""
        with self._client() as client:
            client.unseal(self._unseal_key)
            setup.await_active(client)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @contextlib.contextmanager
    def _client(self) -> Iterator[VaultClient]:
        client = VaultClient(self.address, self.tls.client(), "tallystick")
        try:
            yield client
        finally:
            client.close()

    @contextlib.contextmanager
    def administrator(self) -> Iterator[VaultClient]:
        """With the root token."""
        with self._client() as client:
            client.use(self.root)
            yield client

    def run(self, script: str) -> None:
        """Commands of `bao`, as the administrator runs them."""
        program = Path(server.find_server()).parent
        done = subprocess.run(
            ["sh", "-e"],
            input=script,
            capture_output=True,
            text=True,
            check=False,
            env={
                "PATH": f"{program}:{os.environ['PATH']}",
                "HOME": str(self.folder),
                "VAULT_ADDR": self.address,
                "VAULT_CACERT": str(self.tls.ca),
                "VAULT_TOKEN": self.root.reveal(),
            },
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def requests(self, path: str) -> list[dict[str, Any]]:
        """What its audit file says was asked of `path` and answered."""
        lines = [json.loads(line) for line in self.audit.read_text().splitlines()]
        return [line for line in lines if line["type"] == "response" and line["request"].get("path") == path]


class Impostor:
    """Listens in a vault's place; `tried` counts connections, `heard` is what was said to it once TLS stood."""

    def __init__(self, port: int, tls: ServerTls) -> None:
        self.tried = 0
        self.heard = b""
        self._listener = socket.create_server((HOST, port))
        self.address = f"https://{HOST}:{self._listener.getsockname()[1]}"
        self._context = tls.server()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                with self._context.wrap_socket(connection, server_side=True) as talk:
                    self.heard += talk.recv(65_536)
            self.tried += 1
