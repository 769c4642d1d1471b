"""Keys of the link: a private certificate authority, one certificate a side, and a token.

ca.crt                    both sides: whose certificates count
learner.crt, learner.key  the learner: proves that it is one of the hosts that actors dial
actor.crt, actor.key      actors: prove that they belong to this learner; no actor can pass for the learner
token                     both sides: said in every call
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from robot_rl.files import disk_errors, sync_folder, sync_tree

Side = Literal["learner", "actor"]
SIDES: tuple[Side, ...] = get_args(Side)
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")  # in every learner's certificate
MAX_DAYS = 3650
_PRIVATE = frozenset({"learner.key", "actor.key", "token", "ca.key"})
_USAGE = {"learner": ExtendedKeyUsageOID.SERVER_AUTH, "actor": ExtendedKeyUsageOID.CLIENT_AUTH}
_EARLY = datetime.timedelta(days=1)  # valid from then on: a robot's clock may be behind
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")  # resolvers read a name that ends so as an address: 127.1, 0x7f.1
_TOKEN = re.compile(rb"[0-9a-f]{64}")
_NOT_A_CERTIFICATE = (  # what cryptography raises for one
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_REMEDY = "copy it again from where `robot-rl keys make` wrote it, or make new keys for all machines"


@dataclass(frozen=True)
class Keys:
    """What one side needs: PEM texts, the token, and when the first of its certificates expires (UTC)."""

    ca: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)
    token: str = field(repr=False)
    expires: datetime.datetime


def files_of(side: Side) -> tuple[str, ...]:
    """Names of the files that a machine of ``side`` needs."""
    return ("ca.crt", f"{side}.crt", f"{side}.key", "token")


def canonical_host(text: str) -> str:
    """``text`` as an address or a name is written: lower case, IPv6 in its short form and without brackets.

    Raises ValueError for anything else, also for what only some resolvers take for an address, such as 127.1.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        name = text.lower()
        if _NAME.fullmatch(name) and not _NUMBER.fullmatch(name.rpartition(".")[2]):
            return name
        raise ValueError(
            f"host {text!r} is neither an IP address nor a host name: give one such as 192.168.1.5 or learner.lab"
        ) from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            raise ValueError(f"host {text!r} is an IPv4 address in disguise: give {address.ipv4_mapped}")
        if address.scope_id is not None:
            raise ValueError(f"host {text!r} has a zone, which no certificate can hold: give a name, or no zone")
    return str(address)


def make(folder: Path | str, hosts: Sequence[str], days: int = 825, keep_ca: bool = False) -> None:
    """Write new keys into ``folder`` (0700; what is secret in it 0600), whole or not at all.

    ``hosts`` are the names and addresses by which actors dial the learner, beside those of its own machine; ``days``
    is how long the certificates last. The authority's private key is dropped once it has signed: with it anybody could
    make a learner that every actor trusts, and renewing by making all keys anew is one command and one copy, which
    replaces the token, too. ``keep_ca`` keeps it (ca.key), for a lab that signs further certificates with tools of its
    own; it belongs on none of the machines.

    Raises ValueError that names the argument, FileExistsError where ``folder`` holds anything, and OSError that says
    what to do about a disk.
    """
    names = _hosts(hosts)
    if not 1 <= days <= MAX_DAYS:
        raise ValueError(f"days = {days}: give 1 to {MAX_DAYS}")
    folder = Path(folder).resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty: give another folder; keys are never overwritten")
    content = _content(names, days, keep_ca)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
        try:
            draft.chmod(0o700)  # whatever the umask took away
            for name, data in content.items():
                _write(draft / name, data, 0o600 if name in _PRIVATE else 0o644)
            sync_tree(draft)
            os.rename(draft, folder)  # takes the place of an empty folder, never of another
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_folder(folder.parent)


def load(folder: Path | str, side: Side) -> Keys:
    """The keys of one side, checked: they are whole, belong together, are valid now, and nobody else may read them.

    Raises FileNotFoundError for a missing file, PermissionError for a secret that others may read, and ValueError for
    one that is damaged, expired or of other keys; each names the file and the remedy.
    """
    if side not in SIDES:
        raise ValueError(f"side = {side!r}: give one of {', '.join(SIDES)}")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder of keys {folder} is not there: make it with `robot-rl keys make --out DIR`")
    ca_file, certificate_file, key_file, token_file = (folder / name for name in files_of(side))
    ca_pem, certificate_pem = _read(ca_file), _read(certificate_file)
    key_pem, token = _read(key_file), _read(token_file).strip()
    ca, certificate = _certificate(ca_file, ca_pem), _certificate(certificate_file, certificate_pem)
    try:
        key = serialization.load_pem_private_key(key_pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(f"{key_file} is damaged (not a private key): {_REMEDY}") from None  # nothing of it is shown
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"{token_file} is damaged (not 64 hexadecimal digits): {_REMEDY}")
    if not _may(ca, None):
        raise ValueError(f"{ca_file} is not the certificate of an authority: {_REMEDY}")
    if not _may(certificate, side):
        raise ValueError(f"{certificate_file} is not a certificate for the {side}'s side: {_REMEDY}")
    if not _issued(ca, ca):
        raise ValueError(f"{ca_file} is damaged (its signature is wrong): {_REMEDY}")
    if not _issued(certificate, ca):
        raise ValueError(f"{certificate_file} is damaged, or was not issued by {ca_file}: {_REMEDY}")
    for path, checked in ((ca_file, ca), (certificate_file, certificate)):
        _check_dates(path, checked)
    if key.public_key() != certificate.public_key():
        raise ValueError(f"{key_file} is not the key of {certificate_file}: {_REMEDY}")
    expires = min(ca.not_valid_after_utc, certificate.not_valid_after_utc)
    return Keys(ca_pem, certificate_pem, key_pem, token.decode(), expires)


def describe(folder: Path | str) -> tuple[list[str], bool]:
    """What is in ``folder``, line by line and without a secret, and whether all of it can be used.

    Raises FileNotFoundError where there are no keys, and as ``load`` does for a certificate that is damaged.
    """
    folder = Path(folder)
    have = [name for name in ("ca.crt", "learner.crt", "actor.crt") if (folder / name).exists()]
    if not have:
        raise FileNotFoundError(f"no keys in {folder}: make some with `robot-rl keys make --out DIR`")
    lines, well = [], True
    for name in have:
        certificate = _certificate(folder / name, _read(folder / name))
        until = certificate.not_valid_after_utc
        left_s = (until - _now()).total_seconds()
        left = f"{round(left_s / 86400)} days" if left_s >= 0 else "EXPIRED"
        lines.append(f"{name}: {certificate.subject.rfc4514_string()}, until {_day(until)} ({left})")
        if hosts := _hosts_of(certificate):
            lines.append(f"  hosts: {', '.join(hosts)}")
        if name == "ca.crt":  # the same on all machines
            lines.append(f"  sha256: {certificate.fingerprint(hashes.SHA256()).hex()}")
    for side in SIDES:
        if any((folder / f"{side}.{kind}").exists() for kind in ("crt", "key")):
            try:
                load(folder, side)
                lines.append(f"{side}: ready")
            except (OSError, ValueError) as error:
                well = False
                lines.append(f"{side}: {error}")
    return lines, well


def _hosts(hosts: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys([*map(canonical_host, hosts), *LOCAL_HOSTS]))
    for name in names:
        if name in ("0.0.0.0", "::"):
            raise ValueError(f"host {name!r} is where to listen, not a name of the learner: give what actors dial")
    return names


def _content(names: Sequence[str], days: int, keep_ca: bool) -> dict[str, bytes]:
    """The files by name."""
    now = _now()
    until = now + datetime.timedelta(days=days)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    # Two makes have two names, so that a certificate of the one is never tried with the other's key.
    issuer = _subject(f"robot-rl authority {secrets.token_hex(4)}")
    ca_public = ca_key.public_key()
    ca = (
        x509.CertificateBuilder(issuer, issuer, ca_public, x509.random_serial_number(), now - _EARLY, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_public), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    content = {"ca.crt": ca.public_bytes(serialization.Encoding.PEM), "token": f"{secrets.token_hex(32)}\n".encode()}
    for side in SIDES:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder(
                issuer,
                _subject(f"robot-rl {side}"),
                key.public_key(),
                x509.random_serial_number(),
                now - _EARLY,
                until,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([_USAGE[side]]), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_public), critical=False)
        )
        if side == "learner":
            alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        content[f"{side}.crt"] = builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        content[f"{side}.key"] = _pem(key)
    if keep_ca:
        content["ca.key"] = _pem(ca_key)
    return content


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, mode)
        file.write(data)


def _read(path: Path) -> bytes:
    """The content of ``path``, in one look with its rights; raises as ``load`` does."""
    try:
        with open(path, "rb") as file:
            rights = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: {_REMEDY}") from None
    except PermissionError:
        raise PermissionError(f"{path} may not be read by this user: run as its owner, or chown it") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is damaged (a folder): {_REMEDY}") from None
    if path.name in _PRIVATE and rights & 0o077:
        raise PermissionError(f"{path} may be read or changed by others (mode {rights:04o}): chmod 600 {path}")
    return data


def _certificate(path: Path, pem: bytes) -> x509.Certificate:
    """The one certificate in ``pem``: a second one would be trusted, too, without having been checked."""
    try:
        (certificate,) = x509.load_pem_x509_certificates(pem)
        # Parsed here, not where they are looked at.
        _ = certificate.extensions, certificate.subject, certificate.issuer, certificate.public_key()
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.signature_hash_algorithm
    except _NOT_A_CERTIFICATE as error:
        raise ValueError(f"{path} is damaged (not one certificate): {_REMEDY}") from error
    return certificate


def _check_dates(path: Path, certificate: x509.Certificate) -> None:
    now = _now()
    if now > certificate.not_valid_after_utc:
        raise ValueError(
            f"{path} expired on {_day(certificate.not_valid_after_utc)} (this machine's clock says {_day(now)}): "
            "make new keys with `robot-rl keys make` and copy them to all machines"
        )
    if now < certificate.not_valid_before_utc:
        raise ValueError(
            f"{path} is valid from {_day(certificate.not_valid_before_utc)} on, and this machine's clock says "
            f"{_day(now)}: set the clock"
        )


def _may(certificate: x509.Certificate, side: Side | None) -> bool:
    """Whether ``certificate`` is for ``side`` and for nothing else; None: for issuing others."""
    try:
        issues = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        if side is None or issues:
            return issues and side is None
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return list(usage) == [_USAGE[side]]


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _hosts_of(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _day(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")
