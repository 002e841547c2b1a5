"""What is said of a certificate that can't be used."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from maestrale.serve.listening import why


@pytest.mark.parametrize("content", [None, "", "no certificate", "-----BEGIN CERTIFICATE-----\n"])
def test_a_bad_certificate_is_explained_without_the_librarys_lines(
    content: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "cert.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(OSError) as raised:  # noqa: PT011
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, path)
    told = why(raised.value)
    assert told
    assert "_ssl" not in told
    assert "[" not in told
