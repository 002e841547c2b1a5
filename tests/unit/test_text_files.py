from __future__ import annotations

import pytest

from maestrale.text_files import decode_text, readable, without_bom


@pytest.mark.parametrize("text", ["", "a", "é\n", "\ufeffinner"])
def test_a_mark_is_taken_off_once(text: str) -> None:
    assert decode_text(b"\xef\xbb\xbf" + text.encode()) == text
    assert without_bom(text.encode("utf-8-sig")) == text.encode()


def test_what_is_no_utf_8_says_what_it_is() -> None:
    with pytest.raises(ValueError, match="UTF-16"):
        decode_text("a".encode("utf-16"))
    with pytest.raises(ValueError, match="byte 1"):
        decode_text(b"a\xff")


def test_a_name_of_any_bytes_can_be_sent() -> None:
    assert readable("plain") == "plain"
    assert readable("m\udcff").encode() == "m\ufffd".encode()
