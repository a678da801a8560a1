"""Failures forced where a secret is at hand: neither the line, nor the trace, nor the log, nor a fault handler shows it."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import aiohttp
import msgspec
import pkcs11
import pytest
import structlog
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from tallystick import venues
from tallystick.cli.failures import told
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment import logs
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.keys import keystore as keystores
from tallystick.runtime.keys import module
from tallystick.runtime.keys.hsm import Token, create_token
from tallystick.runtime.keys.identity import client_context, decrypted_key
from tallystick.runtime.keys.keystore import Keystore, Secret, hand_over, read_pin, take_over
from tallystick.schemas import signing
from tallystick.venues.client import Lost, VenueClient
from tests.support.custody import API_KEY, Desk
from tests.support.deployment import make
from tests.support.scanner import Scanner

PLANTED = "correct-horse-battery-staple-4711"
SECRET = Secret(PLANTED)
SCANNER = Scanner({"planted": PLANTED.encode(), "api key": API_KEY.encode()})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployment, Keystore]:
    return make(tmp_path_factory.mktemp("traces") / "desk")


def broken(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("a library gave up")


def shows(exc: BaseException, log: Path) -> str:
    """All that a person, a log or a debugger's trace would show of it."""
    saved = logging.root.handlers[:], logging.root.level
    try:
        written = logs.open_log(log, "test")
        written.error("failed", exc_info=exc, secret=SECRET, nested={"pin": SECRET, "list": [SECRET]})
        logging.getLogger("a library").error("failed: %s %r", SECRET, SECRET, exc_info=exc)
    finally:
        structlog.reset_defaults()
        logging.root.handlers[:], logging.root.level = saved
    text, _ = told(exc, debug=True)
    assert "Traceback" in text, "nothing was traced: the test shows nothing"
    return text + log.read_text() + repr(exc) + str(exc)


def piped(data: bytes) -> int:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader


class Forced:
    """Each method fails with the secret at hand; its docstring is what it must fail with."""

    def __init__(self, deployment: Deployment, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.deployment = deployment
        self.token = deployment.tokens / "custody"
        self.identity = deployment.identity("custody")
        self.path = folder / "keystore"
        self.patch = monkeypatch.setattr
        Keystore.create(self.path, SECRET, {"a": SECRET})

    def scrypt(self) -> object:
        """a library gave up"""
        self.patch(Scrypt, "derive", broken)
        return Keystore.open(self.path, SECRET)

    def another_content(self) -> object:
        """KEYSTORE_TAMPERED"""
        store = Keystore.open(self.path, SECRET)
        self.patch(msgspec.json, "encode", lambda _: json.dumps({"a": [PLANTED]}).encode())
        store.save()
        return Keystore.open(self.path, SECRET)

    def saving(self) -> object:
        """a library gave up"""
        self.patch(keystores, "write_durably", broken)
        Keystore.open(self.path, SECRET).save()
        return None

    def pickling(self) -> object:
        """not pickled"""
        return pickle.dumps({"pin": SECRET})

    def no_json(self) -> object:
        """SECRETS_FD"""
        return take_over(piped(PLANTED.encode()))

    def json_of_another_kind(self) -> object:
        """SECRETS_FD"""
        return take_over(piped(json.dumps([PLANTED]).encode()))

    def pin_that_is_no_text(self) -> object:
        """PIN_INPUT"""
        return read_pin("", piped(PLANTED.encode() + b"\xff\n"))

    def wrong_pin(self) -> object:
        """HSM_PIN"""
        return Token.open(self.token, "custody", SECRET)

    def broken_token(self) -> object:
        """HSM_FAILED.*GeneralError"""

        class Broken:
            def get_token(self, **_: object) -> Broken:
                return self

            def open(self, **_: object) -> NoReturn:
                raise pkcs11.GeneralError

        self.patch(module, "library", lambda _: Broken())
        return Token.open(self.token, "custody", SECRET)

    def token_twice(self) -> object:
        """HSM_TOKEN"""
        create_token(self.token, "custody", SECRET, SECRET)
        return None

    def wrong_passphrase(self) -> object:
        """TLS_KEY"""
        return decrypted_key(self.identity, SECRET)

    def wrong_passphrase_for_tls(self) -> object:
        """TLS_FILES"""
        return client_context(self.deployment.issuing_ca, self.identity, SECRET)

    def handing_over(self) -> object:
        """a library gave up"""
        self.patch(socket, "socketpair", broken)
        return hand_over({"pin": SECRET})

    def formatting(self) -> object:
        """invalid literal"""
        return int(f"{SECRET:>40}")

    def looking_up(self) -> object:
        """Secret"""
        return dict[str, str]()[repr(SECRET)]


@pytest.mark.parametrize("what", [name for name in vars(Forced) if not name.startswith("_")])
def test_a_failure_with_a_secret_at_hand_does_not_show_it(
    what: str, made: tuple[Deployment, Keystore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = getattr(Forced(made[0], tmp_path, monkeypatch), what)
    with pytest.raises(Exception, match=work.__doc__) as failure:
        work()
    monkeypatch.undo()
    text = shows(failure.value, tmp_path / "log.jsonl")
    assert SCANNER.scan([text.encode()]) == set(), text


def test_the_same_look_finds_a_secret_that_is_shown(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as failure:
        raise RuntimeError(f"wrong PIN: {SECRET.reveal()}")
    assert SCANNER.scan([shows(failure.value, tmp_path / "log.jsonl").encode()]) == {"planted"}


INFO = aiohttp.RequestInfo(URL("https://localhost/"), "GET", CIMultiDictProxy(CIMultiDict({"X-MBX-APIKEY": API_KEY})))


@pytest.mark.parametrize(
    "failure",
    [
        aiohttp.ClientResponseError(INFO, (), status=500, message="nonsense"),
        aiohttp.TooManyRedirects(INFO, ()),
        aiohttp.ServerDisconnectedError(),
        OSError(5, "Input/output error"),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_a_venue_that_fails_shows_no_header_of_the_request(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiohttp's own errors hold the request with its headers, and show them in their representation."""
    request = Desk(tmp_path).ask(signing.SignOpenOrders(id=1, venue="paper", symbol="XRP/ETH"))
    assert isinstance(request, signing.Signed)
    assert API_KEY in dict(request.headers).values()

    def fails(*_: object, **__: object) -> NoReturn:
        raise failure

    monkeypatch.setattr(aiohttp.ClientSession, "request", fails)
    client = VenueClient(venues.adapter("binance-spot"), "localhost", venues.client_tls(None), time.time_ns)
    try:
        with pytest.raises(Lost) as lost:
            await client.send(request)
    finally:
        await client.close()
    text = shows(lost.value, tmp_path / "log.jsonl") + repr(request) + str(request)
    assert SCANNER.scan([text.encode()]) == set(), text


# ---------------------------------------------------------------- real processes, with all of Python's debugging on

DEBUG = [sys.executable, "-P", "-X", "dev", "-X", "faulthandler", "-m", "tallystick.cli.main", "--debug"]


@pytest.fixture
def copy(made: tuple[Deployment, Keystore], tmp_path: Path) -> tuple[Deployment, Keystore]:
    """A deployment of its own, whose secrets may be changed."""
    shutil.copytree(made[0].directory, tmp_path / "d")
    deployment = Deployment.load(tmp_path / "d")
    return deployment, Keystore.open(deployment.keystore, Secret("a pin for tests"))


def run(deployment: Deployment, store: Keystore, component: str, signalled: int = 0) -> str:
    """What `tallystick --debug run` says, and what it wrote, until it ends."""
    fd = hand_over({name: store[name] for name in deployment.secret_names(component)})
    try:
        process = subprocess.Popen(
            [*DEBUG, "run", str(deployment.directory), component, "--secrets-fd", str(fd)],
            pass_fds=(fd,), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PYTHONASYNCIODEBUG": "1", "PYTHONWARNINGS": "ignore"}, cwd=deployment.directory,
        )  # fmt: skip
    finally:
        os.close(fd)
    if signalled:
        # It has closed itself to others by then, and holds its secrets.
        end = time.monotonic() + 30
        while not deployment.log(component).exists() and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signalled)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    written = [path.read_text(errors="replace") for path in deployment.directory.glob("log/*")]
    assert not list(deployment.directory.glob("core*"))
    return said + "".join(written)


@pytest.mark.parametrize("what", ["wrong passphrase", "damaged key", "no token", "abort", "segmentation fault"])
def test_a_process_that_fails_with_all_debugging_on_shows_no_secret(
    what: str, copy: tuple[Deployment, Keystore]
) -> None:
    deployment, store = copy
    scanner = Scanner({name: secret.reveal().encode() for name, secret in store.secrets.items()})
    signalled = {"abort": signal.SIGABRT, "segmentation fault": signal.SIGSEGV}.get(what, 0)
    if what == "wrong passphrase":
        store.secrets[layout.passphrase_name("custody")] = store[layout.pin_name("custody")]
    elif what == "damaged key":
        path = deployment.identity("custody")
        path.write_bytes(path.read_bytes()[:900])
    elif what == "no token":
        shutil.rmtree(deployment.tokens / "custody")
    said = run(deployment, store, "custody", signalled)
    assert ("Fatal Python error" if signalled else "tallystick: custody") in said, said
    assert scanner.scan([said.encode()]) == set(), said
