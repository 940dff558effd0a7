"""Pictures from addresses of the public internet, for a server that was started with ``--allow-urls``.

A name is resolved once, every address that it has must be public, and the connection goes to the address that was checked: a name
that changes its address in between gains nothing. Redirects are not followed. Time and size are bounded for the whole.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from contextlib import suppress
from urllib.parse import urlsplit

from diptych.serve.errors import ApiError

SECONDS = 10.0  # for the whole picture
PORTS = (80, 443)
PART = 1 << 16
EMBEDDED = [ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48")]  # IPv4 within IPv6 (NAT64)


def fetched(url: str, most: int, param: str = "image") -> bytes:
    """The bytes at an address. ApiError 400 for one that is not public, or that does not answer with at most ``most`` bytes."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme.lower() == "https" else 80)
    except ValueError:
        raise ApiError(400, "the address of the picture is malformed", param) from None
    if parts.scheme.lower() not in ("http", "https") or not host or parts.username is not None or parts.password is not None:
        raise ApiError(400, "expected http(s)://HOST/PATH without a user name", param)
    if port not in PORTS:
        raise ApiError(400, f"pictures are fetched from the ports {' and '.join(map(str, PORTS))} only", param)
    if not url.isascii() or any(c.isspace() or ord(c) < 32 for c in url):
        raise ApiError(400, "the address of the picture has characters that need %-encoding", param)
    address = public_address(host, port, param)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = _Pinned(host, port, address, parts.scheme.lower() == "https")
    watch = threading.Timer(SECONDS, connection.cut)
    watch.daemon = True
    watch.start()
    try:
        connection.request("GET", path, headers={"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "diptych"})
        answer = connection.getresponse()
        if answer.status != 200:
            why = "redirects are not followed" if 300 <= answer.status < 400 else f"it answered with status {answer.status}"
            raise ApiError(400, f"the picture could not be fetched: {why}", param)
        if answer.getheader("Content-Encoding", "identity") != "identity":
            raise ApiError(400, "the picture could not be fetched: it came compressed", param)
        data = bytearray()
        while part := answer.read(PART):
            data += part
            if connection.was_cut:  # while it had no socket, or another one, to end
                raise TimeoutError
            if len(data) > most:
                raise ApiError(400, f"the picture has more than {most:,} bytes", param)
        if connection.was_cut:
            raise TimeoutError
        return bytes(data)
    except (OSError, http.client.HTTPException, ValueError, AttributeError):  # AttributeError: the socket was cut while it was read
        raise ApiError(400, f"the picture could not be fetched within {SECONDS:g} s", param) from None
    finally:
        watch.cancel()
        connection.close()


def public_address(host: str, port: int, param: str = "image") -> str:
    """The address of a host. ApiError 400 if it has none, or any that is not of the public internet."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ApiError(400, "the host of the picture is not known", param) from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not addresses or not all(map(is_public, addresses)):
        raise ApiError(400, "the host of the picture is not on the public internet", param)
    return addresses[0]


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet; IPv4 within IPv6 counts as what it leads to."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and any(address in network for network in EMBEDDED):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is None and int(address) >> 32 == 0:  # ::a.b.c.d, the old form
            return False
        if inner is not None:
            return is_public(str(inner)) and address.sixtofour is None and address.teredo is None
    return address.is_global and not address.is_multicast and not address.is_reserved


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was checked, under the name that was asked for."""

    def __init__(self, host: str, port: int, address: str, secure: bool):
        super().__init__(host, port, timeout=SECONDS)
        self.address, self.secure, self.was_cut = address, secure, False

    def connect(self) -> None:
        """Connects to the address, with a certificate for the name."""
        self.sock = socket.create_connection((self.address, self.port), self.timeout)
        if self.secure:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock.do_handshake()  # with the socket in its place, so that ``cut`` ends it
        if self.was_cut:
            raise TimeoutError

    def cut(self) -> None:
        """Ends the connection from another thread."""
        self.was_cut = True
        held = self.sock
        if held is not None:
            with suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)
