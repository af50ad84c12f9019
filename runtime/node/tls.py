"""TLS for DICOM associations: both sides show a certificate, nothing older than TLS 1.2."""

from __future__ import annotations

import ssl

from runtime.errors import InputError
from runtime.node.config import Tls


def server_context(tls: Tls) -> ssl.SSLContext:
    """For those who call us: they must show a certificate that our authority signed.

    Raises:
        InputError: a file can't be used.
    """
    return _context(tls, ssl.PROTOCOL_TLS_SERVER)


def client_context(tls: Tls) -> ssl.SSLContext:
    """For those whom we call; their certificate must be signed and bear their name.

    Raises:
        InputError: a file can't be used.
    """
    return _context(tls, ssl.PROTOCOL_TLS_CLIENT)


def _context(tls: Tls, protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(tls.ca)
        context.load_cert_chain(tls.certificate, tls.key)
    except (ssl.SSLError, OSError) as error:
        reason = error.strerror or getattr(error, "reason", "") or str(error)
        raise InputError(
            f"The TLS files {tls.certificate}, {tls.key}, {tls.ca} can't be used ({reason}); they must be PEM, "
            "and the key must be the certificate's and not encrypted."
        ) from error
    context.verify_mode = ssl.CERT_REQUIRED
    return context
