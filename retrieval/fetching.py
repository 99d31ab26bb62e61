"""GET for addresses that strangers wrote: bounded in time and size, never into a private network.

A link in a feed, a sitemap or a redirect can name any host. Each host name is resolved here, every address it has must
be public, and the connection goes to the address that was checked (a second look-up could give another one, "DNS
rebinding"). Origins that the user named are exempt: whoever types `http://127.0.0.1:8000/` means it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time
import urllib.request
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.robotparser import RobotFileParser

import httpx

from infra.errors import InputError, QuillError, Unavailable
from retrieval.sources import MAX_BYTES, too_large

AGENT = "quillstream"
MAX_REDIRECTS = 5
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
TOTAL_SECONDS = 120.0
"""For one page with its redirects; a server that sends a byte every 20 seconds never ends otherwise."""
MAX_CRAWL_DELAY = 10.0
"""Seconds between two requests that a site may ask for in robots.txt."""
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Missing(InputError):
    """The server answers that there is nothing (404) or nothing any more (410) at an address."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the server answers {status}", seen=status)
        self.status = status


@dataclass(frozen=True)
class Page:
    """An answer."""

    url: str
    """Where it came from, after redirects, without user name and password."""
    body: bytes
    """Unpacked, at most `MAX_BYTES`."""
    media_type: str
    """Lower case, without parameters; '' when the server said nothing."""
    charset: str
    """As the server named it, or ''."""
    seen: str
    """The server's validators, for the next request; '' when it gave none."""


class Fetcher:
    """One HTTP client for one ingestion. `named` are the addresses that the user gave."""

    def __init__(self, named: Iterable[str] = ()) -> None:
        self._named = {_origin(httpx.URL(url)) for url in named}
        self._robots: dict[str, RobotFileParser | None] = {}
        self._last: dict[str, float] = {}
        headers = {"User-Agent": AGENT, "Accept-Encoding": "gzip"}
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        self._direct = httpx.Client(headers=headers, timeout=timeout, trust_env=False)
        self._proxied = httpx.Client(headers=headers, timeout=timeout)

    def get(self, url: str, seen: str = "") -> Page | None:
        """The page at an address; None when the server says that it still is what `seen` names.

        Raises `Missing` for 404 and 410, `Unavailable` when there is no answer in time or another error, and
        `InputError` for an address that may not be asked (a private one) or an answer that cannot be used (too long).
        """
        target, deadline = _address(url), time.monotonic() + TOTAL_SECONDS
        headers = {"If-None-Match": seen[2:]} if seen.startswith("e:") else {}
        if seen.startswith("m:"):
            headers = {"If-Modified-Since": seen[2:]}
        for _ in range(MAX_REDIRECTS + 1):
            with self._sent(target, headers) as response:
                if response.status_code == httpx.codes.NOT_MODIFIED and seen:
                    return None
                if not response.has_redirect_location:
                    return _page(target, response, deadline)
                target = _address(str(target.join(response.headers["location"])))
        raise Unavailable(f"it redirects more than {MAX_REDIRECTS} times", seen=shown(url))

    def allowed(self, url: str) -> bool:
        """Whether robots.txt lets a crawler read an address. Waits as long as it asks crawlers to (at most 10 s).

        A robots.txt that does not answer forbids everything (RFC 9309, 2.3.1.4); one that is missing, nothing. Raises
        as `get` does when the host itself may not be asked.
        """
        target = _address(url)
        origin = _origin(target)
        if origin not in self._robots:
            self._addresses(target)
            self._robots[origin] = self._rules(target)
        rules = self._robots[origin]
        if rules is None or not rules.can_fetch(AGENT, url):
            return False
        delay = min(float(rules.crawl_delay(AGENT) or 0), MAX_CRAWL_DELAY)
        time.sleep(max(0.0, self._last.get(origin, 0.0) + delay - time.monotonic()))
        self._last[origin] = time.monotonic()
        return True

    def close(self) -> None:
        """Close the connections."""
        self._direct.close()
        self._proxied.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rules(self, target: httpx.URL) -> RobotFileParser | None:
        rules = RobotFileParser()
        try:
            page = self.get(str(target.copy_with(raw_path=b"/robots.txt", fragment=None)))
            rules.parse(page.body.decode("utf-8", "replace").splitlines() if page else [])
        except Missing:
            rules.parse([])
        except (Unavailable, InputError):
            return None
        return rules

    def _sent(self, target: httpx.URL, headers: Mapping[str, str]) -> _Opened:
        addresses = self._addresses(target)
        if _proxied(target):
            return _Opened(self._proxied, self._proxied.build_request("GET", target, headers=headers))
        requests = [
            self._direct.build_request(
                "GET",
                target.copy_with(host=address),
                headers={**headers, "Host": target.netloc.decode()},
                extensions={"sni_hostname": target.host},
            )
            for address in addresses
        ]
        return _Opened(self._direct, *requests)

    def _addresses(self, target: httpx.URL) -> list[str]:
        """The addresses of a host, all of them public unless the user named it."""
        port = target.port or (443 if target.scheme == "https" else 80)
        try:
            found = socket.getaddrinfo(target.host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            if _proxied(target):
                return []
            raise Unavailable("its host name is not known", seen=target.host) from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        private = [address for address in addresses if not _is_public(address)]
        if private and _origin(target) not in self._named:
            raise InputError(
                f"its host {target.host} lies in a private network ({private[0]})",
                rule="links lead to public addresses",
                fix="name the address itself if you mean it",
            )
        return addresses


class _Opened:
    """A response of the first request that connects, closed at the end of the block."""

    def __init__(self, client: httpx.Client, *requests: httpx.Request) -> None:
        self._client = client
        self._requests = requests

    def __enter__(self) -> httpx.Response:
        for request in self._requests[:-1]:
            try:
                return self._opened(request)
            except httpx.ConnectError:
                continue
        try:
            return self._opened(self._requests[-1])
        except httpx.HTTPError as error:
            raise _unavailable(error) from error

    def _opened(self, request: httpx.Request) -> httpx.Response:
        self._response = self._client.send(request, stream=True)
        return self._response

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._response.close()


def shown(url: str) -> str:
    """An address without user name, password and fragment: what may be stored and printed."""
    return str(_address(url).copy_with(userinfo=b"", fragment=None))


def reason_of(error: QuillError) -> str:
    """An error as a clause that follows the source."""
    return error.what if error.seen is None or isinstance(error, Missing) else f"{error.what} ({error.seen})"


def gunzipped(data: bytes) -> bytes:
    """Unpacked gzip, at most `MAX_BYTES`. Raises `InputError` when it is broken or longer."""
    return _Body("gzip").all([data])


class _Body:
    """Collects a body, unpacking it within the limit: 20 kB of gzip can unpack to 20 MB, and 20 MB to 20 GB."""

    def __init__(self, encoding: str) -> None:
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise InputError(f"it is packed with {encoding[:30]}, which was not asked for", rule="gzip or nothing")
        self._unpacker = zlib.decompressobj(wbits=31) if encoding.endswith("gzip") else None

    def all(self, chunks: Iterable[bytes]) -> bytes:
        """The whole body."""
        body = bytearray()
        for chunk in chunks:
            room = MAX_BYTES + 1 - len(body)
            try:
                body += self._unpacker.decompress(chunk, room) if self._unpacker else chunk
            except zlib.error as error:
                raise InputError(f"it is broken gzip ({error})") from error
            if len(body) > MAX_BYTES:
                raise too_large(len(body))
        if self._unpacker and not self._unpacker.eof:
            raise InputError("it is gzip that ends too early")
        return bytes(body)


def _page(url: httpx.URL, response: httpx.Response, deadline: float) -> Page:
    status = response.status_code
    if status in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
        raise Missing(status)
    if status != httpx.codes.OK:
        raise Unavailable(f"the server answers {status} {response.reason_phrase}".rstrip())
    length = response.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BYTES:
        raise too_large(int(length))
    body = _Body(response.headers.get("content-encoding", "").strip().lower())
    try:
        data = body.all(_before(deadline, response))
    except httpx.HTTPError as error:
        raise _unavailable(error) from error
    media_type, _, parameters = response.headers.get("content-type", "").partition(";")
    charset = re.search(r"charset=[\"']?([\w.:-]+)", parameters, re.IGNORECASE)
    return Page(
        url=shown(str(url)),
        body=data,
        media_type=media_type.strip().lower(),
        charset=charset[1] if charset else "",
        seen=_validators(response.headers),
    )


def _before(deadline: float, response: httpx.Response) -> Iterable[bytes]:
    for chunk in response.iter_raw():
        yield chunk
        if time.monotonic() > deadline:
            raise Unavailable(f"it takes longer than {TOTAL_SECONDS:.0f} s")


def _validators(headers: httpx.Headers) -> str:
    if etag := headers.get("etag"):
        return f"e:{etag}"
    return f"m:{headers['last-modified']}" if "last-modified" in headers else ""


def _address(url: str) -> httpx.URL:
    try:
        found = httpx.URL(url.strip())
    except (httpx.InvalidURL, ValueError) as error:
        raise InputError("not an address", seen=url, rule="http://… or https://…") from error
    if found.scheme not in ("http", "https") or not found.host:
        raise InputError("not an address of the web", seen=url, rule="http://… or https://…")
    return found


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.host.lower()}:{url.port or (443 if url.scheme == 'https' else 80)}"


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inside = found.ipv4_mapped or found.sixtofour
        if found in NAT64:
            inside = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inside is not None:
            found = inside
    return found.is_global and not found.is_multicast


def _proxied(url: httpx.URL) -> bool:
    """Whether the system sends requests of this address through a proxy, which then resolves its name."""
    return url.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(url.host)


def _unavailable(error: httpx.HTTPError) -> Unavailable:
    reason = "it does not answer in time" if isinstance(error, httpx.TimeoutException) else "it does not answer"
    return Unavailable(reason, seen=str(error) or type(error).__name__)
