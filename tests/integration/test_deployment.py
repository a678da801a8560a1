"""`deployment.toml`, the deployment folder and the key ceremony that makes it, up to a broker that runs on its keys."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import msgspec
import nats
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.components.gateway.policy import Policy
from tallystick.components.paper_exchange import access
from tallystick.infra.nats import topology
from tallystick.infra.nats.claims import Accounts, Validity
from tallystick.infra.nats.server import EmbeddedServer, ServerConfig
from tallystick.runtime.deployment import ceremony, certificates
from tallystick.runtime.deployment import folder as layout
from tallystick.runtime.deployment.config import TOKENS, StrategyConfig, TokenConfig, parse_config
from tallystick.runtime.deployment.folder import Deployment
from tallystick.runtime.deployment.methods import own_account
from tallystick.runtime.keys import pki
from tallystick.runtime.keys.hsm import Token
from tallystick.runtime.keys.identity import client_context, decrypted_key, load_certificate
from tallystick.runtime.keys.keystore import Keystore, Secret
from tallystick.schemas.credential import open_credential
from tallystick.schemas.errors import ConfigError, Malformed, Unverified
from tallystick.schemas.limits import LimitBook
from tallystick.schemas.nats_jwt import SessionKey, decode_key, encode_jwt, encode_key, sign_nonce, user_claims

MASTER = Secret("ceremony-master-pin")
STRATEGIES = (
    StrategyConfig(
        name="alpha",
        module="tallystick.components.strategy.examples.momentum",
        instruments=("XRP/ETH",),
        params={"fast": "5"},
    ),
    StrategyConfig(name="beta", module='weird"path\\with/quotes.py', instruments=("XRP/ETH", "BTC/USDT")),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    directory = tmp_path_factory.mktemp("d") / "lab"
    return ceremony.init(directory, "lab", MASTER, time.time_ns, strategies=STRATEGIES)


@pytest.fixture(scope="module")
def store(made: Deployment) -> Keystore:
    return Keystore.open(made.keystore, MASTER)


@pytest.fixture(scope="module")
def text(made: Deployment) -> str:
    return (made.directory / layout.CONFIG_NAME).read_text()


# ---------------------------------------------------------------- the ceremony


def test_the_trust_root_verifies_from_the_pinned_key_and_names_every_component(made: Deployment) -> None:
    (root,) = made.load_trust()
    bus = topology.deployed("lab", ("alpha", "beta"), ())
    assert root.deployment == "lab"
    assert set(root.components) == set(bus.components)
    assert {name: c.lifetime for name, c in root.components.items()} == {
        name: c.lifetime_s for name, c in bus.components.items()
    }
    root.require_scope("strategy-alpha", "order.intent.alpha.paper.XRP-ETH")
    with pytest.raises(Unverified, match="SCOPE"):
        root.require_scope("strategy-alpha", "order.intent.beta.paper.XRP-ETH")
    assert root.instrument("paper", "XRP/ETH").tick == Decimal("1e-8")
    assert root.venues["paper"].host == made.config.venue.host


def test_a_trust_root_of_another_ceremony_is_refused(made: Deployment, tmp_path: Path) -> None:
    other = ceremony.init(tmp_path / "other", "lab", MASTER, time.time_ns)
    with pytest.raises(Unverified, match="NOTE_UNSIGNED"):
        made.load_trust(bytes.fromhex(other.pinned_key.read_text()))


def test_every_key_lives_in_its_token_and_is_the_one_named_in_the_trust_root(made: Deployment, store: Keystore) -> None:
    (root,) = made.load_trust()
    with Token.open(made.token("roles"), "roles", store[layout.pin_name("roles")]) as token:
        for name, record in root.components.items():
            assert token.signer(layout.role_key_id(name)).public == decode_key("A", record.role_key)
        with pytest.raises(ConfigError, match="HSM_KEY"):
            token.signer(layout.KEY_OPERATOR)
    with Token.open(made.token("signing"), "signing", store[layout.pin_name("signing")]) as token:
        for name, record in root.components.items():
            assert token.signer(layout.account_key_id(name)).public == decode_key("A", record.account)
        assert token.signer(layout.KEY_OPERATOR).public.hex() != root.operator
        assert token.signer(layout.KEY_CORE_ACCOUNT).public == decode_key("A", root.core_account)
    with Token.open(made.token("operator"), "operator", store[layout.pin_name("operator")]) as token:
        assert token.signer(layout.KEY_PERSON).public.hex() == root.operator
    with Token.open(made.token("audit"), "audit", store[layout.pin_name("audit")]) as token:
        token.signer(layout.KEY_CHECKPOINT)
    with Token.open(made.token("execution"), "execution", store[layout.pin_name("execution")]) as token:
        assert token.signer(layout.KEY_IDENTITY).public.hex() == root.hardware_key("execution")
    with Token.open(made.token("issuer"), "issuer", store[layout.pin_name("issuer")]) as token:
        public = token.signer(layout.KEY_ISSUER).public
    assert root.component("strategy-alpha").method == own_account("lab", "strategy-alpha", public)


@pytest.mark.parametrize("component", ["custody", "portfolio", "audit", "execution", "authority"])
def test_a_component_is_given_the_variables_of_its_own_token_and_of_no_other(made: Deployment, component: str) -> None:
    labels = {"authority": ("signing", "roles")}.get(component, (component,))
    tokens = {t: TokenConfig(uri=f"pkcs11:token={t}?module-path=/m.so", env=(f"OF_{t.upper()}",)) for t in TOKENS}
    config = msgspec.structs.replace(made.config, tokens=tokens)
    changed = Deployment(made.directory, config)
    assert set(changed.variables(component)) == {f"OF_{label.upper()}" for label in labels}


def test_a_token_opens_with_no_other_tokens_pin(made: Deployment, store: Keystore) -> None:
    for label in TOKENS:
        other = next(t for t in TOKENS if t != label)
        with pytest.raises(ConfigError, match="HSM_PIN"):
            Token.open(made.token(label), label, store[layout.pin_name(other)])


def test_certificates_have_the_ca_of_the_operators_token_and_open_with_their_own_passphrase(
    made: Deployment, store: Keystore
) -> None:
    with Token.open(made.token("operator"), "operator", store[layout.pin_name("operator")]) as token:
        root = pki.CertificateAuthority("lab", token.p256_signer(layout.KEY_CA), load_certificate(made.ca))
    with Token.open(made.token("roles"), "roles", store[layout.pin_name("roles")]) as token:
        ca = certificates.issuing_authority(made, token)
    ca.certificate.verify_directly_issued_by(root.certificate)
    (trust,) = made.load_trust()
    for name in (*trust.components, layout.BROKER, layout.OPERATOR):
        certificate = load_certificate(made.identity(name))
        certificate.verify_directly_issued_by(ca.certificate)
        assert pki.spiffe_component(certificate.public_bytes(serialization.Encoding.DER), "lab") == name
        client_context(made.issuing_ca, made.identity(name), store[layout.passphrase_name(name)])
    with pytest.raises(ConfigError, match="TLS_FILES"):
        client_context(made.issuing_ca, made.identity("gateway"), store[layout.passphrase_name("custody")])


def test_the_venue_knows_both_api_keys_with_no_more_permission_than_they_need(
    made: Deployment, store: Keystore
) -> None:
    config = access.parse_config(made.paper_exchange.read_bytes())
    venue = access.Keys(config.keys, config.accounts)
    for component, permissions in (("custody", {"trade", "read"}), ("portfolio", {"read"})):
        with Token.open(made.token(component), component, store[layout.pin_name(component)]) as token:
            signature = base64.b64encode(token.signer(layout.KEY_VENUE).sign(b"timestamp=1")).decode()
        key = venue.verify(store[layout.api_key_name(component)].reveal(), "127.0.0.1", b"timestamp=1", signature)
        assert key.permissions == permissions
        assert key.ips == ("127.0.0.1",)
        assert not key.listen_keys


def test_the_paper_account_holds_ten_hourly_caps_of_each_quote_asset_and_nothing_to_sell(made: Deployment) -> None:
    hourly = {cap.asset: cap.max_hourly for cap in made.config.caps}
    assert hourly == {"ETH": 500, "XRP": 500_000, "USDT": 500_000, "BTC": 10}
    (held,) = access.parse_config(made.paper_exchange.read_bytes()).accounts.values()
    assert held == {"ETH": 5_000, "USDT": 5_000_000}


def test_limits_and_policies_are_ones_that_the_gateway_runs_with(made: Deployment) -> None:
    root = made.load_trust()[-1]
    assert LimitBook(root.limits).of("alpha", "ETH").max_notional == 5000
    assert Policy.load(made.policy, root).digest.hex() == root.policy


def test_no_secret_of_the_keystore_lies_anywhere_in_the_folder(made: Deployment, store: Keystore) -> None:
    public = {layout.api_key_name("custody"), layout.api_key_name("portfolio")}  # the venue must know these
    wanted = [secret.reveal().encode() for name, secret in store.secrets.items() if name not in public]
    assert len(wanted) > 20
    for path in made.directory.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [w for w in (*wanted, MASTER.reveal().encode()) if w in data], path


def test_nothing_in_the_folder_is_open_to_others(made: Deployment) -> None:
    for path in (made.directory, *made.directory.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_no_plain_private_key_lies_in_the_folder(made: Deployment) -> None:
    for path in made.directory.rglob("*"):
        if path.is_file():
            assert b"BEGIN PRIVATE KEY" not in path.read_bytes()
            assert b"BEGIN EC PRIVATE KEY" not in path.read_bytes()


def test_a_component_gets_its_own_secrets_and_no_others(made: Deployment, store: Keystore) -> None:
    assert made.secret_names("strategy-alpha") == ("pki.strategy-alpha.passphrase",)
    assert made.secret_names("execution") == ("pki.execution.passphrase", "hsm.execution.pin")
    assert made.secret_names("custody") == ("pki.custody.passphrase",)
    assert made.leased_names("custody") == ("hsm.custody.pin", "venue.custody.api_key")
    assert made.leased_names("execution") == ()
    seen: set[str] = set()
    for component in made.load_trust()[-1].components:
        names = (*made.secret_names(component), *made.leased_names(component))
        assert not seen & set(names)
        seen |= set(names)
        for name in names:
            assert len(store[name].reveal()) >= 43
    # What no component gets: the operator's token, the security officers' PINs, the broker's store.
    assert {"hsm.operator.pin", "hsm.roles.pin.so", "nats.store_key", "hsm.issuer.pin"} <= set(store.secrets) - seen


def test_a_folder_that_holds_anything_is_refused_and_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "taken"
    directory.mkdir()
    (directory / "mine").write_text("kept")
    with pytest.raises(ConfigError, match="INIT_EXISTS"):
        ceremony.init(directory, "lab", MASTER, time.time_ns)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
    assert (directory / "mine").read_text() == "kept"


def test_an_empty_folder_is_taken_and_the_ceremony_takes_seconds(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    start = time.process_time()
    assert ceremony.init(tmp_path / "empty", "lab", MASTER, time.time_ns).name == "lab"
    assert time.process_time() - start < 6


def _fail_at(step: str) -> Callable[[str], None]:
    def progress(text: str) -> None:
        if text.startswith(step):
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("step", ["token signing", "token operator", "keystore"])
def test_an_interrupted_ceremony_leaves_nothing_and_can_be_repeated(tmp_path: Path, step: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        ceremony.init(tmp_path / "lab", "lab", MASTER, time.time_ns, progress=_fail_at(step))
    assert list(tmp_path.iterdir()) == []
    if step == "keystore":
        ceremony.init(tmp_path / "lab", "lab", MASTER, time.time_ns)


def test_a_killed_ceremony_leaves_no_deployment_and_can_be_repeated(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time\nfrom pathlib import Path\n"
        "from tallystick.runtime.deployment.ceremony import init\n"
        "from tallystick.runtime.keys.keystore import Secret\n"
        "def progress(text):\n"
        "    if text.startswith('keystore'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "init(Path(sys.argv[1]), 'lab', Secret('ceremony-master-pin'), time.time_ns, progress=progress)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, str(tmp_path / "lab")], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "lab").exists()
    with pytest.raises(ConfigError, match="tallystick init"):
        Deployment.load(tmp_path / "lab")
    assert ceremony.init(tmp_path / "lab", "lab", MASTER, time.time_ns).load_trust()


@pytest.mark.parametrize(
    ("name", "pin", "code"),
    [("Lab", MASTER, "NAME"), ("a/b", MASTER, "NAME"), ("lab", Secret("short"), "PIN_INPUT")],
)
def test_an_unusable_name_or_pin_leaves_nothing(tmp_path: Path, name: str, pin: Secret, code: str) -> None:
    with pytest.raises((ConfigError, Malformed), match=code):
        ceremony.init(tmp_path / "lab", name, pin, time.time_ns)
    assert list(tmp_path.iterdir()) == []


def test_a_path_too_long_for_sockets_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="INIT_PATH"):
        ceremony.init(tmp_path / ("x" * 90), "lab", MASTER, time.time_ns)
    assert list(tmp_path.iterdir()) == []


async def test_a_broker_runs_on_these_keys_and_a_component_logs_in_with_a_session_of_its_role_key(
    made: Deployment, store: Keystore, tmp_path: Path
) -> None:
    bus = made.bus()
    keys = made.load_bus_keys()
    now = time.time_ns() // 10**9
    with Token.open(made.token("signing"), "signing", store[layout.pin_name("signing")]) as token:
        accounts = Accounts(bus, keys, token.signer(layout.KEY_OPERATOR), token.signer(layout.KEY_ACTIVATION)).all(
            Validity(issued_s=now, expires_s=now + 3600)
        )
    (root,) = made.load_trust()
    session, boot = SessionKey(bytes(range(32))), b"b" * 16
    with Token.open(made.token("roles"), "roles", store[layout.pin_name("roles")]) as token:
        role = token.signer(layout.role_key_id("strategy-alpha"))
        account = decode_key("A", root.component("strategy-alpha").account)
        credential = encode_jwt(
            role,
            "A",
            user_claims("strategy-alpha", boot, session.public, role.public, account, now, now + 60, "test"),
        )
    assert open_credential(credential, root).component == "strategy-alpha"
    server = EmbeddedServer(
        ServerConfig(
            name="lab",
            operator=made.operator_token.read_text(),
            system_account=encode_key("A", keys.system_account),
            accounts=accounts,
            ca_file=made.issuing_ca,
            cert_file=made.identity(layout.BROKER),
            key_pem=decrypted_key(made.identity(layout.BROKER), store[layout.passphrase_name(layout.BROKER)]),
            store_key=bytes.fromhex(store[layout.PIN_STORE_KEY].reveal()),
            folder=tmp_path / "js",
            resolver_dir=tmp_path / "jwt",
            run_dir=tmp_path / "run",
            log_file=tmp_path / "log",
        )
    )
    server.start()
    try:
        await _log_in(server.url, made, store, credential, session)
    finally:
        server.stop()


async def _log_in(url: str, made: Deployment, store: Keystore, credential: str, session: SessionKey) -> None:
    name = "strategy-alpha"
    tls = client_context(made.issuing_ca, made.identity(name), store[layout.passphrase_name(name)])
    client = await nats.connect(
        url,
        tls=tls,
        tls_handshake_first=True,
        user_jwt_cb=lambda: bytearray(credential.encode()),
        signature_cb=lambda nonce: sign_nonce(session, nonce),
        inbox_prefix=b"_INBOX_strategy-alpha",
        allow_reconnect=False,
    )
    await client.flush()
    await client.close()


# ---------------------------------------------------------------- deployment.toml


def test_what_the_ceremony_writes_is_what_it_was_given(made: Deployment) -> None:
    assert made.config.strategies == STRATEGIES
    assert made.config.market_data.source == "synthetic"
    assert made.config.instruments[0].tick == Decimal("0.00000001")
    assert made.strategies == ("alpha", "beta")
    assert len({made.config.broker.port, made.config.authority.port, made.config.venue.port()}) == 3


def test_a_missing_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"tallystick init {tmp_path / 'none'}")):
        Deployment.load(tmp_path / "none")


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / layout.CONFIG_NAME).write_text(text)
    tmp_path.chmod(0o770)
    with pytest.raises(ConfigError, match="chmod 700"):
        Deployment.load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("host =", "hots =", "unknown field `hots`"),
        ("[broker]\nport = ", "[broker]\nprot = 1\nport = ", r"unknown field `prot` - at `\$.broker`"),
        ('deployment = "lab"', 'deployment = "Lab"', "deployment 'Lab' must be 1 to 48"),
        ('deployment = "lab"', "", "missing required field `deployment`"),
        ('tick = "0.01"', "tick = 0.01", r'0\.01 is a float.*write it as text: "0\.01"'),
        ('tick = "0.01"', 'tick = "0.01x"', r"Invalid decimal string - at `\$\.instruments\[1\]\.tick`"),
        ('tick = "0.01"', 'tick = "0"', "tick must be above zero"),
        ('kind = "paper"', 'kind = "papr"', "Invalid enum value 'papr'"),
        ('kind = "paper"', 'kind = "binance"', 'source = "synthetic" with venue kind = "binance"'),
        ('venue = "paper"\nsymbol = "BTC/USDT"', 'venue = "other"\nsymbol = "BTC/USDT"', "venue 'other', not 'paper'"),
        ('symbol = "BTC/USDT"', 'symbol = "XRP/ETH"', "'XRP/ETH' stands twice"),
        ('name = "beta"', 'name = "alpha"', "'alpha' stands twice"),
        ('asset = "USDT"\nmax_order', 'asset = "ETH"\nmax_order', "'main ETH' stands twice"),
        ('source = "synthetic"', 'source = "dump"', "source 'dump' with 0 paths"),
        (
            'source = "synthetic"',
            'source = "synthetic"\nsymbols = ["ADA/USDT"]',
            "'ADA/USDT' is none of BTC/USDT, XRP/ETH",
        ),
        ('speed = "1"', 'speed = "0"', "speed must be above zero"),
        ("[limits]", "[limits.strategy.gamma]\nburst = 1\n[limits]", "there is no such strategy"),
        ("[broker]", "[broker", r"deployment\.toml: "),
        ("[limits]", "[limits]\n[limits]", "Cannot declare"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place(text: str, old: str, new: str, said: str) -> None:
    assert old in text
    with pytest.raises(ConfigError, match=said) as caught:
        parse_config(text.replace(old, new, 1), "deployment.toml")
    assert caught.value.text.startswith("deployment.toml: ")


@pytest.mark.parametrize("port", ["-1", "65536", '"4222"', "true"])
def test_an_impossible_port_is_refused(text: str, port: str) -> None:
    with pytest.raises(ConfigError, match="DEPLOYMENT"):
        parse_config(re.sub(r"\[broker\]\nport = \d+", f"[broker]\nport = {port}", text), "deployment.toml")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:٣", "127.0.0.1:65536"])
def test_a_paper_venue_without_a_port_is_refused(text: str, host: str) -> None:
    changed = re.sub(r'host = "127\.0\.0\.1:\d+"', lambda _: f'host = "{host}"', text)
    with pytest.raises(ConfigError, match="HOST:PORT"):
        parse_config(changed, "deployment.toml")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_text_breaks_the_parser(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    changed = text[:start] + data.draw(st.text(max_size=20)) + text[start + data.draw(st.integers(0, 20)) :]
    with contextlib.suppress(ConfigError):
        parse_config(changed, "deployment.toml")


def test_the_strategies_listed_for_an_instrument_are_those_that_name_it(made: Deployment) -> None:
    assert made.listed == {("paper", "XRP/ETH"): ("alpha", "beta"), ("paper", "BTC/USDT"): ("beta",)}


def test_bus_keys_that_disagree_with_the_trust_root_are_refused(made: Deployment, tmp_path: Path) -> None:
    copy = Deployment(tmp_path / "copy", made.config)
    shutil.copytree(made.directory, copy.directory)
    keys = json.loads(made.bus_keys.read_text())
    keys["components"]["gateway"]["role"] = keys["components"]["execution"]["role"]
    copy.bus_keys.write_text(json.dumps(keys))
    with pytest.raises(Unverified, match="BUS_KEYS"):
        copy.load_bus_keys()
    copy.bus_keys.write_text("{")
    with pytest.raises(ConfigError, match="BUS_KEYS"):
        copy.load_bus_keys()


def test_a_missing_or_torn_trust_root_is_refused(made: Deployment, tmp_path: Path) -> None:
    empty = Deployment(tmp_path, made.config)
    with pytest.raises(ConfigError, match="TRUST_ROOT"):
        empty.load_trust()
    empty.trust.mkdir()
    empty.pinned_key.write_text(made.pinned_key.read_text())
    with pytest.raises(Unverified, match="TRUST_ROOT_MISSING"):
        empty.load_trust()
    note = (made.trust / "root-1.note").read_text()
    (empty.trust / "root-1.note").write_text(note.replace('"max_order": "10"', '"max_order": "99"'))
    with pytest.raises(Unverified, match="NOTE_SIGNATURE"):
        empty.load_trust()


def test_the_ca_certificate_is_p256(made: Deployment) -> None:
    public = load_certificate(made.ca).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.curve.name == "secp256r1"
