"""Keys on the disk: what is in them, who may read them, and what is said about those that cannot be used."""

from __future__ import annotations

import datetime
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl import cli, files
from robot_rl.link import keys

SECRETS = ("actor.key", "learner.key", "token")
ALL = {"ca.crt", "learner.crt", "learner.key", "actor.crt", "actor.key", "token"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("made") / "keys"
    keys.make(path, ["Learner.lab", "192.168.1.5", "fe80::5", "localhost"], days=10)
    return path


@pytest.fixture
def mine(made, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(made, tmp_path / "mine")


def secrets_of(folder: Path) -> list[str]:
    lines = [line for name in SECRETS for line in (folder / name).read_text().split("\n") if line and "--" not in line]
    assert len(lines) >= 7
    return lines


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_files_and_their_rights_under_any_umask(tmp_path, umask) -> None:
    before = os.umask(umask)
    try:
        keys.make(tmp_path / "keys", [])
    finally:
        os.umask(before)
    assert mode(tmp_path / "keys") == 0o700
    rights = {path.name: mode(path) for path in (tmp_path / "keys").iterdir()}
    assert rights == {name: 0o600 if name in SECRETS else 0o644 for name in ALL}
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_certificates_say_what_they_are_for(made) -> None:
    ca, learner, actor = (certificate(made / f"{name}.crt") for name in ("ca", "learner", "actor"))
    now = datetime.datetime.now(datetime.UTC)
    for one in (ca, learner, actor):
        assert isinstance(one.public_key(), ec.EllipticCurvePublicKey)
        assert one.not_valid_before_utc < now - datetime.timedelta(hours=23)
        assert now + datetime.timedelta(days=9.9) < one.not_valid_after_utc < now + datetime.timedelta(days=10)
        one.verify_directly_issued_by(ca)
    for one, usage in ((learner, ExtendedKeyUsageOID.SERVER_AUTH), (actor, ExtendedKeyUsageOID.CLIENT_AUTH)):
        assert list(one.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
        assert not one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = learner.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["learner.lab", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == [
        "192.168.1.5",
        "fe80::5",
        "127.0.0.1",
        "::1",
    ]


def test_the_authoritys_key_is_kept_only_when_asked_for(tmp_path) -> None:
    keys.make(tmp_path / "kept", [], keep_ca=True)
    key = serialization.load_pem_private_key((tmp_path / "kept" / "ca.key").read_bytes(), None)
    assert key.public_key() == certificate(tmp_path / "kept" / "ca.crt").public_key()
    assert mode(tmp_path / "kept" / "ca.key") == 0o600


def test_two_makes_have_nothing_in_common(made, tmp_path) -> None:
    keys.make(tmp_path / "again", ["learner.lab"])
    assert not set(secrets_of(made)) & set(secrets_of(tmp_path / "again"))
    assert certificate(made / "ca.crt").subject != certificate(tmp_path / "again" / "ca.crt").subject
    assert len(bytes.fromhex((made / "token").read_text())) == 32


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(keys, "sync_tree", full)
        with pytest.raises(OSError, match="disk is full"):
            keys.make(tmp_path / "deep" / "keys", [])
    assert list((tmp_path / "deep").iterdir()) == []
    (tmp_path / "deep" / "keys").mkdir(mode=0o755)  # empty: as good as none
    keys.make(tmp_path / "deep" / "keys", [])
    assert mode(tmp_path / "deep" / "keys") == 0o700
    before = {path.name: path.read_bytes() for path in (tmp_path / "deep" / "keys").iterdir()}
    with pytest.raises(FileExistsError, match="never overwritten"):
        keys.make(tmp_path / "deep" / "keys", [])
    assert {path.name: path.read_bytes() for path in (tmp_path / "deep" / "keys").iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="exists"):
        keys.make(tmp_path / "file", [])
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_was_filled_meanwhile_is_left_alone(tmp_path, monkeypatch) -> None:
    def meanwhile(folder: Path) -> None:
        (tmp_path / "keys").mkdir()
        (tmp_path / "keys" / "theirs").write_text("theirs")
        files.sync_tree(folder)

    monkeypatch.setattr(keys, "sync_tree", meanwhile)
    with pytest.raises(OSError, match="not empty"):
        keys.make(tmp_path / "keys", [])
    assert [path.name for path in tmp_path.rglob("*")] == ["keys", "theirs"]


@pytest.mark.parametrize(
    ("hosts", "days", "words"),
    [
        (["http://learner.lab"], 5, "'http://learner.lab'"),
        (["learner.lab:5580"], 5, "'learner.lab:5580'"),
        (["*.lab"], 5, "'*.lab'"),
        ([""], 5, "''"),
        (["0.0.0.0"], 5, "where to listen"),
        (["::"], 5, "where to listen"),
        (["fe80::1%eth0"], 5, "zone"),
        (["::ffff:10.0.0.1"], 5, "give 10.0.0.1"),
        ([], 0, "days = 0"),
        ([], 3651, "days = 3651"),
    ],
)
def test_wrong_arguments_make_nothing(tmp_path, hosts, days, words) -> None:
    with pytest.raises(ValueError, match="give ") as caught:
        keys.make(tmp_path / "keys", hosts, days)
    assert words in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("side", ["learner", "actor"])
def test_a_side_needs_its_own_files_only(mine, side) -> None:
    for name in ALL - set(keys.files_of(side)):
        (mine / name).unlink()
    have = keys.load(mine, side)
    assert have.token == (mine / "token").read_text().strip() and have.expires.tzinfo is datetime.UTC
    text = f"{have!r} {have}"
    assert not [secret for secret in secrets_of_side(mine, side) if secret in text]
    for name in keys.files_of(side):
        (mine / name).rename(mine / "away")
        with pytest.raises(FileNotFoundError, match=f"{name} is missing: copy it again"):
            keys.load(mine, side)
        (mine / "away").rename(mine / name)


def secrets_of_side(folder: Path, side: str) -> list[str]:
    return [(folder / "token").read_text().strip(), *(folder / f"{side}.key").read_text().splitlines()[1:-1]]


@pytest.mark.parametrize("name", ["ca.crt", "actor.crt", "actor.key", "token"])
@pytest.mark.parametrize("damage", ["empty", "cut", "binary", "twice", "folder", "of others"])
def test_damage_is_named_and_no_secret_shown(mine, tmp_path, name, damage) -> None:
    keys.make(tmp_path / "others", [])
    good = (mine / name).read_bytes()
    spoilt = {"empty": b"", "cut": good[:-30], "binary": b"\xff\x00" * 40, "twice": good * 2}
    known = secrets_of(mine)
    if damage == "folder":
        (mine / name).unlink()
        (mine / name).mkdir()
    elif damage == "of others":
        shutil.copy2(tmp_path / "others" / name, mine / name)
        known += secrets_of(tmp_path / "others")
    else:
        (mine / name).write_bytes(spoilt[damage])
    if (name, damage) in {("token", "of others"), ("actor.key", "twice")}:
        keys.load(mine, "actor")  # nothing on this side contradicts the one; of the other only the first key counts
        return
    with pytest.raises(ValueError, match="copy it again") as caught:
        keys.load(mine, "actor")
    chain = f"{caught.value} {caught.value.__cause__}"
    assert str(mine / ("actor.crt" if damage == "of others" and name == "ca.crt" else name)) in chain
    assert not [secret for secret in known if secret in chain]


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(["ca.crt", "actor.crt", "actor.key"]), place=st.integers(0), bit=st.integers(0, 7))
def test_no_flipped_bit_is_taken_for_keys(made, tmp_path_factory, name, place, bit) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    for file in keys.files_of("actor"):
        shutil.copy2(made / file, folder / file)
    data = bytearray((made / name).read_bytes())
    data[place % len(data)] ^= 1 << bit
    (folder / name).write_bytes(bytes(data))
    try:
        keys.load(folder, "actor")
    except ValueError as error:
        assert "copy it again" in str(error) and not [one for one in secrets_of(made) if one in str(error)]
    else:  # a bit of a line's end
        assert decoded(folder / name) == decoded(made / name)


def decoded(path: Path) -> object:
    """What a PEM file says."""
    if path.suffix == ".crt":
        return certificate(path)
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.private_numbers()


@pytest.mark.parametrize("name", ["actor.key", "token"])
@pytest.mark.parametrize("rights", [0o640, 0o604, 0o660, 0o644, 0o620])
def test_a_secret_that_others_may_read_is_refused(mine, name, rights) -> None:
    (mine / name).chmod(rights)
    with pytest.raises(PermissionError, match=f"{name} may be read or changed by others .*chmod 600 ") as caught:
        keys.load(mine, "actor")
    assert not [secret for secret in secrets_of(mine) if secret in str(caught.value)]
    (mine / name).chmod(0o400)
    assert keys.load(mine, "actor").token


def test_dates_are_checked_against_the_clock_and_said(mine, monkeypatch) -> None:
    now = datetime.datetime.now(datetime.UTC)
    monkeypatch.setattr(keys, "_now", lambda: now + datetime.timedelta(days=11))
    day = f"{now + datetime.timedelta(days=10):%Y-%m}"
    with pytest.raises(ValueError, match=f"ca.crt expired on {day}.*`robot-rl keys make`"):
        keys.load(mine, "actor")
    assert cli.main(["keys", "show", str(mine)]) == 1
    monkeypatch.setattr(keys, "_now", lambda: now - datetime.timedelta(days=2))
    with pytest.raises(ValueError, match=r"is valid from .*set the clock"):
        keys.load(mine, "learner")
    monkeypatch.setattr(keys, "_now", lambda: now - datetime.timedelta(hours=20))  # a robot's clock that is behind
    assert keys.load(mine, "learner").token


def test_one_side_is_not_the_other(mine) -> None:
    """Nor is an authority, and nobody is without a folder."""
    for kind in ("crt", "key"):
        shutil.copy2(mine / f"actor.{kind}", mine / f"learner.{kind}")
    with pytest.raises(ValueError, match="not a certificate for the learner's side"):
        keys.load(mine, "learner")
    shutil.copy2(mine / "actor.crt", mine / "ca.crt")
    with pytest.raises(ValueError, match="not the certificate of an authority"):
        keys.load(mine, "actor")
    with pytest.raises(FileNotFoundError, match="robot-rl keys make"):
        keys.load(mine / "nothing", "actor")
    with pytest.raises(ValueError, match="learner, actor"):
        keys.load(mine, "robot")  # type: ignore[arg-type]


def test_the_commands_say_everything_but_secrets(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        cli.main(["keys", "make", "--out", "keys", "--host", "learner.lab", "--host", "192.168.1.5", "--days", "9"])
        == 0
    )
    made = capsys.readouterr()
    assert "copy to the learner: keys/ca.crt keys/learner.crt keys/learner.key keys/token" in made.out
    assert "copy to every actor: keys/ca.crt keys/actor.crt keys/actor.key keys/token" in made.out
    assert "hosts: learner.lab, 192.168.1.5, localhost, 127.0.0.1, ::1" in made.out and "(9 days)" in made.out
    for name in ("learner.crt", "learner.key"):
        (tmp_path / "keys" / name).unlink()
    assert cli.main(["keys", "show", "keys"]) == 0
    shown = capsys.readouterr()
    assert "actor: ready" in shown.out and "learner" not in shown.out.replace("robot-rl learner", "")
    (tmp_path / "keys" / "token").chmod(0o644)
    assert cli.main(["keys", "show", "keys"]) == 1
    wrong = capsys.readouterr()
    assert "chmod 600 keys/token" in wrong.out
    assert cli.main(["keys", "make", "--out", "keys"]) == 2
    assert cli.main(["keys", "show", "nothing"]) == 2
    err = capsys.readouterr().err
    assert err.count("robot-rl: error: ") == 2 and "never overwritten" in err and "no keys in nothing" in err
    secrets = [
        (tmp_path / "keys" / "token").read_text().strip(),
        *(tmp_path / "keys" / "actor.key").read_text().split("\n")[1:-2],
    ]
    assert len(secrets) >= 4
    assert not [secret for secret in secrets if secret in f"{made} {shown} {wrong} {err}"]


def test_the_command_line_loads_neither_grpc_nor_cryptography_to_parse() -> None:
    code = "import sys, robot_rl.cli; print({'grpc', 'cryptography', 'robot_rl.link.keys'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
