"""Starting an embedded server: when it is there, and when it is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tallystick.infra.embedded import await_tls, free_port
from tallystick.schemas.errors import ConfigError
from tests.support.tls import make_server_tls

# It listens at once, and reads its key only then, as OpenBao does.
LATE = """
import socket, ssl, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
time.sleep(0.5)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
open(sys.argv[4], "w").close()
while True:
    plain, _ = listener.accept()
    try:
        context.wrap_socket(plain, server_side=True)
    except OSError:
        pass
"""
NEVER = """
import socket, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
time.sleep(0.3)
sys.exit(1)
"""


def refused() -> ConfigError:
    return ConfigError("VAULT_START", "it ended")


def test_a_server_that_listens_before_it_has_read_its_key_is_waited_for(tmp_path: Path) -> None:
    tls, port, read = make_server_tls(tmp_path), free_port("127.0.0.1"), tmp_path / "read"
    with subprocess.Popen(
        [sys.executable, "-c", LATE, str(port), str(tls.certificate), str(tls.key), str(read)]
    ) as process:
        try:
            await_tls(process, "127.0.0.1", port, refused)
            assert read.exists()
        finally:
            process.kill()


def test_a_server_that_listens_and_ends_was_never_there() -> None:
    port = free_port("127.0.0.1")
    with subprocess.Popen([sys.executable, "-c", NEVER, str(port)]) as process:
        with pytest.raises(ConfigError, match="VAULT_START: it ended"):
            await_tls(process, "127.0.0.1", port, refused)
        process.wait()
