"""The formats of strings, as regular expressions for all of the text.

Those of JSON Schema, and those that zod, pydantic and OpenAPI write beside them.
"""

from __future__ import annotations

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP = "(?:0[48]|[2468][048]|[13579][26])"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|(?:[0-9]{{2}}{_LEAP}|{_LEAP}00)-02-29)"
)
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
_LOCAL = r"(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,9})?)?"
_ZONE = "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
_H = "[0-9a-fA-F]{1,4}"
_IPV6 = "|".join(
    [f"(?:{_H}:){{7}}{_H}", f"(?:{_H}:){{1,7}}:", f":(?::{_H}){{1,7}}", "::"]
    + [f"(?:{_H}:){{1,{7 - more}}}(?::{_H}){{1,{more}}}" for more in range(1, 7)]
)
# Of networks those whose edge is a point, so that all bits behind it are 0.
_NETWORK4 = "|".join(
    [rf"(?:{_OCTET}\.){{{at}}}0(?:\.0){{{3 - at}}}/{8 * at}" for at in range(4)] + [f"{_IPV4}/32"]
)
_NETWORK6 = "|".join([f"(?:{_H}:){{{at}}}:/{16 * at}" for at in range(1, 8)] + [f"(?:{_IPV6})/128"])
_LABEL = "[a-zA-Z0-9](?:-?[a-zA-Z0-9]){0,31}"  # "--" is for names that Punycode encodes
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,8}}"
_ATOM = r"[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,64}"
_PCHAR = r"(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
_QUERY = rf"(?:\?(?:{_PCHAR}|[/?])*)?(?:#(?:{_PCHAR}|[/?])*)?"
_AFTER = rf"(?:/{_PCHAR}*)*{_QUERY}"
_PATH = rf"(?:/|/?(?:[a-zA-Z0-9._~!$&'()*+,;=@-]|%[0-9a-fA-F]{{2}})+(?:/{_PCHAR}*)*)?"
_AUTHORITY = rf"(?:{_HOST}|\[(?:{_IPV6})\])(?::[0-9]{{1,4}})?"
_N = "[0-9]{1,9}"
_DURATION_DATE = f"(?:{_N}Y(?:{_N}M(?:{_N}D)?)?|{_N}M(?:{_N}D)?|{_N}D)"
_DURATION_TIME = f"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"
_POINTER = r'(?:/(?:[^"\\/~\x00-\x1f\x7f]|~[01])*)*'
FORMATS = {
    "base64": "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",
    "base64url": "[A-Za-z0-9_-]*",
    "cidrv4": f"{_IPV4}/(?:3[0-2]|[12]?[0-9])",
    "cidrv6": f"(?:{_IPV6})/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9])",
    "cuid": "c[a-z0-9]{24}",
    "cuid2": "[a-z][a-z0-9]{23}",
    "date": _DATE,
    "date-time": f"{_DATE}T{_CLOCK}{_ZONE}",
    "date-time-local": f"{_DATE}T{_LOCAL}",
    "duration": f"P(?:{_DURATION_DATE}(?:{_DURATION_TIME})?|{_DURATION_TIME}|[0-9]{{1,9}}W)",
    "e164": r"\+[1-9][0-9]{6,14}",
    "email": rf"{_ATOM}(?:\.{_ATOM}){{0,3}}@{_HOST}",
    "hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "json-pointer": r"(?:/(?:[^\"\\/~\x00-\x1f\x7f]|~[01])*)*",
    "jwt": r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*",
    "nanoid": "[A-Za-z0-9_-]{21}",
    "relative-json-pointer": rf"(?:0|[1-9][0-9]{{0,8}})(?:#|{_POINTER})",
    "ksuid": "[0-9A-Za-z]{27}",
    "mac": "(?:[0-9A-F]{2}:){5}[0-9A-F]{2}",
    "time": f"{_CLOCK}{_ZONE}",
    "time-local": _LOCAL,
    "ulid": "[0-7][0-9A-HJKMNP-TV-Z]{25}",
    "uri": rf"[a-zA-Z][a-zA-Z0-9+.-]{{0,30}}:(?://{_AUTHORITY}{_AFTER}|{_PCHAR}+{_AFTER})",
    "uri-reference": rf"//{_AUTHORITY}{_AFTER}|{_PATH}{_QUERY}",
    "uri-template": rf"(?:{_PCHAR}|[/?]|\{{[a-zA-Z0-9_]+\}})*",
    "uuid": "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "xid": "[0-9a-v]{20}",
}
FORMATS |= {
    "byte": FORMATS["base64"],
    "idn-email": FORMATS["email"],
    "idn-hostname": FORMATS["hostname"],
    "iri": FORMATS["uri"],
    "iri-reference": FORMATS["uri-reference"],
    "ipv4interface": FORMATS["cidrv4"],
    "ipv4network": _NETWORK4,
    "ipv6interface": FORMATS["cidrv6"],
    "ipv6network": _NETWORK6,
    "ipvanyaddress": f"{_IPV4}|{_IPV6}",
    "ipvanyinterface": f"{FORMATS['cidrv4']}|{FORMATS['cidrv6']}",
    "ipvanynetwork": f"{_NETWORK4}|{_NETWORK6}",
    "multi-host-uri": FORMATS["uri"],
    "url": FORMATS["uri"],
}
FORMATS |= {
    f"uuid{version}": rf"[0-9a-f]{{8}}-[0-9a-f]{{4}}-{version}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-"
    r"[0-9a-f]{12}"
    for version in range(1, 9)
}
LONGEST = {"hostname": 253, "idn-hostname": 253}
# What these say is for people and forms, or can't be seen from the text.
FREE_FORMATS = frozenset(
    {"binary", "color", "directory-path", "emoji", "enum", "file-path", "html", "json-string"}
    | {"markdown", "password", "path", "phone", "text", "textarea"}
)
