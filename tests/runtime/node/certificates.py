"""Certificates for tests: an authority and two that it signed, made with openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def make_authority(folder: Path, name: str) -> Path:
    """A self-signed authority; its PEM certificate, with the key beside it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    certificate = folder / f"{name}.pem"
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    use = ("-addext", "keyUsage=critical,keyCertSign")
    _openssl(*new, "-subj", f"/CN={name}", *use, "-keyout", folder / f"{name}.key", "-out", certificate)
    return certificate


def make_certificate(authority: Path, name: str) -> dict[str, str]:
    """A certificate for 127.0.0.1 that the authority signed, as the fields of a ``tls`` table."""
    folder = authority.parent
    key, request, certificate = (folder / f"{name}.{ending}" for ending in ("key", "csr", "crt"))
    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    _openssl(*new, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
    extensions = folder / "extensions.txt"
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    sign = ("x509", "-req", "-in", request, "-CA", authority, "-CAkey", authority.with_suffix(".key"))
    _openssl(*sign, "-CAcreateserial", "-days", "2", "-extfile", extensions, "-out", certificate)
    return {"certificate": str(certificate), "key": str(key), "ca": str(authority)}
