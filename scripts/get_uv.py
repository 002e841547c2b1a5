"""Gets uv for a Python that has neither pip nor venv: `python3 get_uv.py LOCK PROGRAM`.

Its wheel, of the version and with one of the hashes that LOCK pins, comes from where pip or uv
would take it: their variables and pip.conf are read. Prints what a shell has to evaluate so that
uv goes the same way. Any Python from 3.8 on; the standard library alone.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import html.parser
import io
import json
import netrc
import os
import pathlib
import platform
import re
import shlex
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Collection, Mapping

PYPI = "https://pypi.org/simple"
PAGES = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"


class Unavailable(Exception):
    """Says why."""


def pip_settings() -> dict[str, str]:
    """What pip would be told here, by its names; variables go before files, as with pip."""
    home = os.path.expanduser("~")
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    files = ["/etc/xdg/pip/pip.conf", "/etc/pip.conf", os.path.join(home, ".pip/pip.conf")]
    files += [os.path.join(config, "pip/pip.conf"), os.environ.get("PIP_CONFIG_FILE", "")]
    if os.environ.get("PIP_CONFIG_FILE") == os.devnull:
        files = []
    found: dict[str, str] = {}
    for file in filter(None, files):
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, ValueError):
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                found.update({key.replace("_", "-"): value for key, value in parser.items(section)})
    for name, value in os.environ.items():
        if name.startswith("PIP_") and value:
            found[name[4:].lower().replace("_", "-")] = value
    return found


class Sources:
    """Where packages come from: uv's own settings, and pip's for what they leave open."""

    def __init__(self, pip: dict[str, str], environment: Mapping[str, str]) -> None:
        def own(*names: str) -> str:
            return next((environment[name] for name in names if environment.get(name)), "")

        self.index = own("UV_DEFAULT_INDEX", "UV_INDEX_URL") or pip.get("index-url", "")
        more = own("UV_INDEX", "UV_EXTRA_INDEX_URL") or pip.get("extra-index-url", "")
        # uv lets an index have a name: NAME=URL.
        self.more = [word.partition("=")[2] if re.match(r"[\w-]+=", word) else word
                     for word in more.split()]  # fmt: skip
        links = own("UV_FIND_LINKS").replace(",", " ") or pip.get("find-links", "")
        self.links = links.split()
        self.no_index = pip.get("no-index", "").lower() in ("1", "true", "yes", "on")
        self.trusted = (own("UV_INSECURE_HOST") or pip.get("trusted-host", "")).split()
        self.certificates = own("SSL_CERT_FILE") or pip.get("cert", "")
        self.certificates = self.certificates or own("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
        self.proxy = pip.get("proxy", "")
        self.timeout = float(pip.get("timeout") or pip.get("default-timeout") or 60)

    def for_uv(self) -> dict[str, str]:
        """The same as uv's variables."""
        proxy = self.proxy if "://" in self.proxy or not self.proxy else "http://" + self.proxy
        named = {
            "UV_DEFAULT_INDEX": self.index,
            "UV_INDEX": " ".join(self.more),
            # As pip: whichever index has the file that the lock wants.
            "UV_INDEX_STRATEGY": "unsafe-best-match" if self.more else "",
            "UV_FIND_LINKS": ",".join(self.links),
            "UV_NO_INDEX": "1" if self.no_index else "",
            "UV_INSECURE_HOST": " ".join(self.trusted),
            "SSL_CERT_FILE": self.certificates,
            "HTTPS_PROXY": proxy,
            "HTTP_PROXY": proxy,
        }
        return {name: value for name, value in named.items() if value}

    def opener(self, url: str) -> urllib.request.OpenerDirector:
        context = ssl.create_default_context(cafile=self.certificates or None)
        parts = urllib.parse.urlsplit(url)
        if {parts.hostname, parts.netloc.rpartition("@")[2]}.intersection(self.trusted):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
        if self.proxy:
            proxy = self.for_uv()["HTTPS_PROXY"]
            handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
        return urllib.request.build_opener(*handlers)

    def credentials_for(self, parts: urllib.parse.SplitResult) -> str:
        """NAME:PASSWORD, from the address, that of an index on the same host, or ~/.netrc."""
        host = parts.netloc.rpartition("@")[2]
        for known in (parts, *map(urllib.parse.urlsplit, (self.index, *self.more))):
            if known.username is not None and known.netloc.rpartition("@")[2] == host:
                unquote = urllib.parse.unquote
                return f"{unquote(known.username)}:{unquote(known.password or '')}"
        try:
            found = netrc.netrc().authenticators(parts.hostname or "")
        except (OSError, netrc.NetrcParseError):
            return ""
        return f"{found[0]}:{found[2]}" if found else ""

    def get(self, url: str, accept: str = "*/*") -> tuple[str, str, bytes]:
        """(address after redirects, kind of content, content)."""
        parts = urllib.parse.urlsplit(url)
        headers = {"Accept": accept, "User-Agent": "maestrale"}
        if parts.scheme == "file":
            url += "index.html" if url.endswith("/") else ""
        elif credentials := self.credentials_for(parts):
            sent = base64.b64encode(credentials.encode()).decode()
            headers["Authorization"] = "Basic " + sent
            url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        with self.opener(url).open(
            urllib.request.Request(url, headers=headers), timeout=self.timeout
        ) as answer:
            return answer.geturl(), answer.headers.get_content_type(), answer.read()


class Links(html.parser.HTMLParser):
    """The addresses that a page links to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get("href")
        if tag == "a" and address:
            self.found.append(address)


def candidates(sources: Sources) -> tuple[list[str], list[str]]:
    """Addresses of all files of uv that are told of, best source first; and what went wrong."""
    found: list[str] = []
    problems: list[str] = []
    for place in sources.links:
        folder = pathlib.Path(urllib.parse.urlsplit(place).path if "://" in place else place)
        local = "://" not in place or place.startswith("file:")
        if local and folder.is_dir():
            found += [file.absolute().as_uri() for file in sorted(folder.glob("uv-*.whl"))]
    pages = [] if sources.no_index else [sources.index or PYPI, *sources.more]
    for page in [index.rstrip("/") + "/uv/" for index in pages]:
        try:
            address, kind, content = sources.get(page, PAGES)
            if kind.endswith("json"):
                told = [file["url"] for file in json.loads(content)["files"]]
            else:
                told = Links(content.decode("utf-8", "replace")).found
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{hidden(page)}: failed to fetch: {error}")
            continue
        found += [urllib.parse.urljoin(address, each) for each in told]
    return found, problems


def hidden(url: str) -> str:
    """Without the password in it."""
    return re.sub(r"//[^/@]*@", "//", url)


def fits(name: str, version: str) -> bool:
    """Whether the file of that name is of the version, and for this machine."""
    match = re.fullmatch(r"uv-([^-]+)-[^-]+-[^-]+-([^-]+)\.whl", name)
    if match is None or match[1] != version:
        return False
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    libc = "manylinux" if platform.libc_ver()[0] == "glibc" else "musllinux"
    return match[2] == "any" or any(
        tag.startswith(libc) and tag.endswith("_" + machine) for tag in match[2].split(".")
    )


def wheel(sources: Sources, version: str, hashes: Collection[str]) -> bytes:
    """Its content. Raises: Unavailable; OSError."""
    found, problems = candidates(sources)
    addresses = []
    for address in found:
        name = urllib.parse.unquote(urllib.parse.urlsplit(address).path.rpartition("/")[2])
        if fits(name, version):
            addresses.append(urllib.parse.urldefrag(address)[0])
    if not addresses:
        none = f"no matching distribution: uv {version} for this machine"
        raise Unavailable("\n".join(problems or [none]))
    for address in addresses:
        content = sources.get(address)[2]
        if hashlib.sha256(content).hexdigest() in hashes:
            return content
    raise Unavailable(f"{hidden(addresses[0])} has none of the hashes of the lock")


def main() -> None:
    lock, program = sys.argv[1], pathlib.Path(sys.argv[2])
    text = pathlib.Path(lock).read_text(encoding="utf-8")
    pinned = re.search(r"^uv==(\S+)((?:[ \\\n]+--hash=sha256:[0-9a-f]{64})+)", text, re.M)
    if pinned is None:
        raise Unavailable(f"{lock} pins no uv")
    sources = Sources(pip_settings(), os.environ)
    content = wheel(sources, pinned[1], set(re.findall(r"[0-9a-f]{64}", pinned[2])))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        inside = f"uv-{pinned[1]}.data/scripts/uv"
        draft = program.with_name(f"{program.name}.{os.getpid()}")
        program.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(archive.read(inside))
    draft.chmod(0o755)
    draft.replace(program)
    for name, value in sources.for_uv().items():
        print(f'[ -n "${{{name}:-}}" ] || export {name}={shlex.quote(value)}')


if __name__ == "__main__":
    try:
        main()
    except (Unavailable, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        sys.exit(f"uv can't be had: {error}")
