"""API keys outlive the paper exchange, however it ends; and what was answered, or not, can be asked for again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tallystick.components.paper_exchange.server import Fault
from tests.support.paper import Raw, raw
from tests.support.sub_keys import KEYS, MANAGER, NEW, RIGHTS, SUB, make_key, new_key, pem, serving, signed_by, stamp
from tests.support.tls import ServerTls

DENIED = (401, -2015)


@contextmanager
def killed(tls: ServerTls, folder: Path) -> Iterator[int]:
    """A process of the exchange, by its port, which ends by SIGKILL."""
    command = [sys.executable, "-m", "tests.support.sub_keys", str(tls.certificate), str(tls.key), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            os.kill(process.pid, signal.SIGKILL)


async def test_made_and_deleted_keys_stay_so_over_kill_9(tls: ServerTls, tmp_path: Path) -> None:
    stays, goes = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    async with aiohttp.ClientSession() as session:
        with killed(tls, tmp_path) as port:
            client = Raw(session, port, tls.client())
            kept = await make_key(client, "stays", stays)
            gone = await make_key(client, "goes", goes)
            assert (await client.send("DELETE", KEYS, stamp(f"email={SUB}&subAccountApiKey={gone}"), MANAGER))[0] == 200
            # One of the configuration's own as well.
            which = f"email={SUB}&subAccountApiKey=readerkey"
            assert (await client.send("DELETE", KEYS, stamp(which), MANAGER))[0] == 200
            restrict = f"email={SUB}&subAccountApiKey=traderkey&status=2&ipAddress=192.0.2.7"
            path = f"{KEYS.replace('v1', 'v2')}/ipRestriction"
            assert (await client.send("POST", path, stamp(restrict), MANAGER))[0] == 200
        # Twice: the file is written anew at each start.
        for _ in range(2):
            with killed(tls, tmp_path) as port:
                client = Raw(session, port, tls.client())
                assert await client.code("GET", RIGHTS, signed_by(stays), kept) == (200, 0)
                assert await client.code("GET", RIGHTS, signed_by(goes), gone) == DENIED
                assert await client.code("GET", RIGHTS, stamp(), "readerkey") == DENIED
                _, answer = await client.send("GET", KEYS, stamp(f"email={SUB}&size=100"), MANAGER)
                names = {row["apikey"]: row["apiName"] for row in answer["list"]}
                assert names[kept] == "stays"
                assert not {gone, "readerkey"} & names.keys()
                which = f"email={SUB}&subAccountApiKey=traderkey"
                _, answer = await client.send("GET", f"{KEYS}/ipRestriction", stamp(which), MANAGER)
                assert answer["ipList"] == ["127.0.0.1", "192.0.2.7"]


@pytest.mark.parametrize("kind", ["drop_before", "drop_after"])
async def test_a_key_whose_answer_was_lost_is_found_by_its_label(tls: ServerTls, tmp_path: Path, kind: str) -> None:
    faults = {f"POST {NEW}": Fault(kind=kind)}  # type: ignore[arg-type]
    fields = new_key("ts-lost", pem(Ed25519PrivateKey.generate()))
    async with serving(tls, tmp_path, faults=faults) as life, raw(life, tls) as client:
        with pytest.raises(aiohttp.ClientError):
            await client.send("POST", NEW, stamp(fields), MANAGER)
        _, answer = await client.send("GET", KEYS, stamp(f"email={SUB}"), MANAGER)
        found = [row for row in answer["list"] if row["apiName"] == "ts-lost"]
        assert len(found) == (kind == "drop_after")
        # Asked again it is made where it was not, and refused as a duplicate where it was: never twice.
        again = await client.code("POST", NEW, stamp(fields), MANAGER)
        assert again == ((200, 0) if kind == "drop_before" else (400, -2009))
