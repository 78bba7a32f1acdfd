"""Any server that speaks OpenAI's chat completions: vLLM, Ollama, a llama.cpp server, a cloud service.

The standard library's HTTP client is used because it can be held to one time limit from the first byte to the last, and because
nothing happens unseen: no redirect is followed, nothing is sent twice but by the batch, and nothing goes out without consent.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import ipaddress
import json
import os
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from urllib.parse import urlsplit

from ... import __version__
from ...case import Case, Rationale
from ...errors import Cancelled, InputError, WriterError
from ..parse import THINKING
from .ledger import Ledger
from .model import Answer, Request, Stop
from .picture import redacted_png
from .prompt import Prompt

KEY_VARIABLE, URL_VARIABLE = "CERS_API_KEY", "CERS_API_URL"  # the key, and the endpoint that it is for
KEYRING_SERVICE = "cers"
_MOST_BYTES = 4 << 20  # of an answer; a rationale has some hundred
_CONNECT_SECONDS = 15.0
_OPTIONAL = {"temperature": None, "max_tokens": "max_completion_tokens"}  # setting -> what newer models call it; None: leave it out


def endpoint_url(url: str) -> str:
    """The base URL in one spelling, under which consent is kept, such as ``https://api.example.org/v1``.

    Raises:
        InputError: not an http or https URL, or one with a password, query or fragment, which might hold a key.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise InputError(f"The endpoint '{url}' is not a URL. Write for instance http://localhost:11434/v1.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or not _can_be_asked(parts.hostname, parts.path):
        raise InputError(f"The endpoint '{url}' is not a web address. Write for instance http://localhost:11434/v1.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "The endpoint's URL must not hold a user, key or query. Keep the key in the system's keyring, or in the "
            f"environment variable {KEY_VARIABLE}."
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    standard = {"http": 80, "https": 443}[parts.scheme]
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{host}{'' if port in (None, standard) else f':{port}'}{path}"


def _can_be_asked(host: str, path: str) -> bool:
    """Whether name servers and HTTP can carry these, which a slip of the keyboard ("api..org") makes impossible."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return path.isascii() and not re.search(r"\s", host + path)


def is_loopback(url: str) -> bool:
    """Whether the endpoint is this very machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def consent_text(url: str, picture: bool) -> str:
    """What the user of the command agrees to, in plain words."""
    what = "the measured findings of each case" + (" and its picture (body only, lesion outlined)" if picture else ", without pictures")
    where = "on this machine" if is_loopback(url) else f"at {urlsplit(url).hostname}, which is not this machine"
    plain = (
        ""
        if is_loopback(url) or url.startswith("https")
        else " The connection is not encrypted: others on the network can read it, and a key."
    )
    return (
        f"CERS will send {what} to {url} {where}.{plain} No names, dates or other header fields are sent. A picture itself can still "
        "be personal data. The consent holds until you withdraw it: cers rationale consent withdraw"
    )


def find_key(url: str, variable: str | None = None) -> str | None:
    """The endpoint's key: from the variable named, else from the system's keyring under its URL, else from ``CERS_API_KEY`` where
    ``CERS_API_URL`` names the same host, so that no other host gets it."""
    if variable:
        return key_from("environment", url, variable)
    if (kept := _kept_key(url)) is not None:
        return kept
    key, place = os.environ.get(KEY_VARIABLE), os.environ.get(URL_VARIABLE)
    return _usable(key) if key and place and urlsplit(endpoint_url(place))[:2] == urlsplit(url)[:2] else None


def key_in_clear(url: str, key: str | None) -> bool:
    """Whether a key would go unencrypted to another machine."""
    return bool(key) and url.startswith("http:") and not is_loopback(url)


def key_from(source: str, url: str, variable: str | None = None) -> str | None:
    """The endpoint's key from the one place named, so that a key meant for one endpoint never goes to another.

    Args:
        source: "none", "environment" (``variable``, default ``CERS_API_KEY``) or "keyring". url: as ``endpoint_url`` spells it.

    Raises:
        InputError: there is no key in that place, or no such place.
    """
    if source == "none":
        return None
    if source == "environment":
        name = variable or KEY_VARIABLE
        if not os.environ.get(name):
            if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name):  # might be the key itself, so it is not repeated
                raise InputError("There is no environment variable of the name that you gave. Give its name, never the key itself.")
            raise InputError(f"The environment variable {name} is not set. Set it to the endpoint's key before the program starts.")
        return _usable(os.environ[name])
    if source != "keyring":
        raise InputError(f"There is no key source '{source}'. Use none, environment or keyring.")
    if keyring() is None:
        raise InputError(
            "The system's keyring cannot be reached, because the package keyring is not installed. Install it, or use an "
            "environment variable."
        )
    if (key := _kept_key(url)) is None:
        raise InputError(f"The system's keyring holds no key for {url}. Store it once with: cers rationale key set {url}")
    return key


def _kept_key(url: str) -> str | None:
    """The key that the system's keyring holds for an endpoint."""
    if (ring := keyring()) is not None:
        with suppress(ring.errors.KeyringError):  # a locked or absent keyring is as good as an empty one
            if kept := ring.get_password(KEYRING_SERVICE, url):
                return _usable(kept)
    return None


def keyring():
    """The optional package that reaches the system's keyring, None where it is not installed."""
    try:
        import keyring as package
        import keyring.errors
    except ImportError:
        return None
    return package


def _usable(key: str) -> str:
    key = key.strip()
    if not key.isascii() or not key.isprintable():
        raise InputError("The endpoint's key holds characters that no key has. Copy it again, without line breaks.")
    return key


class Endpoint:
    """A model behind a base URL.

    Args:
        url: base URL, for instance ``http://localhost:11434/v1``. model: as the server calls it.
        picture: whether the redacted picture is sent with the findings.
        key: from ``find_key``; sent to this host only, kept nowhere.
        seconds: limit for one request, from connecting to the last byte.
        parallel: requests at a time.

    Raises:
        InputError: not a URL that can be used, or no model.
    """

    def __init__(
        self,
        url: str,
        model: str,
        prompt: Prompt,
        *,
        picture: bool = False,
        key: str | None = None,
        seconds: float = 120.0,
        parallel: int = 4,
        max_tokens: int = 700,
        ledger: Ledger | None = None,
    ):
        if not model.strip():
            raise InputError("Name the endpoint's model, as the server calls it.")
        self.url, self.model, self.name, self.prompt = endpoint_url(url), model.strip(), model.strip(), prompt
        self.with_picture, self.parallel, self.seconds, self.max_tokens = picture, parallel, seconds, max_tokens
        self.ledger = Ledger() if ledger is None else ledger
        self._key = key
        self._settings: dict = {"temperature": 0, "max_tokens": max_tokens}

    def request(self, case: Case, measured: Rationale) -> Request:
        system, user = self.prompt.fill(case, measured, picture=self.with_picture)
        png = redacted_png(case) if self.with_picture else None
        content: str | list = user
        if png is not None:
            data = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
            content = [{"type": "text", "text": user}, {"type": "image_url", "image_url": {"url": data}}]
        messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
        body = {"model": self.model, "messages": messages, **self._settings}
        return Request(system, user, json.dumps(body, ensure_ascii=False).encode("utf-8"), png)

    def ask(self, request: Request, stop: Stop) -> Answer:
        try:
            return self._ask(request, stop)
        except _Unsupported as refused:
            # newer models refuse settings that older ones need
            new = _OPTIONAL[refused.setting]
            value = self._settings.pop(refused.setting, None)
            if new and value is not None:
                self._settings[new] = value
            body = json.loads(request.body)
            for setting in (*_OPTIONAL, *filter(None, _OPTIONAL.values())):
                body.pop(setting, None)
            changed = json.dumps({**body, **self._settings}, ensure_ascii=False).encode("utf-8")
            return self.ask(Request(request.system, request.user, changed, request.picture), stop)

    def _ask(self, request: Request, stop: Stop) -> Answer:
        if stop.is_set():
            raise Cancelled
        picture = request.picture is not None
        if not self.ledger.allows(self.url, picture):
            raise WriterError(
                f"Nothing was sent to {self.url}, because you have not agreed to it. To agree: cers rationale consent grant "
                f"{self.url}{' --with-picture' if picture else ''}",
                fatal=True,
            )
        start = time.monotonic()
        entry = self.ledger.sending(self.url, self.model, request.sha256, len(request.body), picture)
        outcome, usage = "failed", (None, None)
        try:
            status, headers, data = self._post(request.body, stop)
            outcome = str(status)
            if status != 200:
                raise self._refused(status, headers, data, request)
            text, usage = _read(data)
            return Answer(text, time.monotonic() - start, *usage)
        except (OSError, http.client.HTTPException) as error:
            outcome, failure = self._broken(error, stop, start)
            raise failure from error
        except WriterError as error:
            outcome = outcome if outcome != "200" else f"200, {error}"
            raise
        finally:
            self.ledger.sent(entry, outcome, time.monotonic() - start, *usage)

    def _post(self, body: bytes, stop: Stop) -> tuple[int, http.client.HTTPMessage, bytes]:
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": f"cers/{__version__}",
            "Connection": "close",
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }
        deadline = time.monotonic() + self.seconds
        connection = _connection(self.url, min(self.seconds, _CONNECT_SECONDS))
        try:
            connection.connect()
            sock = connection.sock
            sock.settimeout(self.seconds)
            # a time limit of the socket's own would start again with each byte of a server that drips
            timer = threading.Timer(max(0.0, deadline - time.monotonic()), _shut, (sock,))
            timer.daemon = True
            timer.start()
            try:
                with stop.calling(lambda: _shut(sock)):
                    connection.request("POST", urlsplit(self.url).path + "/chat/completions", body, headers)
                    response = connection.getresponse()
                    data = response.read(_MOST_BYTES + 1)
                    announced = response.headers.get("Content-Length", "")
            finally:
                timer.cancel()
            if time.monotonic() >= deadline:
                raise TimeoutError
            if len(data) > _MOST_BYTES:
                raise WriterError(f"{self.url} answered with more than {_MOST_BYTES >> 20} MB, which is no rationale. Check the address.")
            if announced.isdigit() and len(data) < int(announced):
                raise http.client.IncompleteRead(data, int(announced) - len(data))
            return response.status, response.headers, data
        finally:
            connection.close()

    def _broken(self, error: Exception, stop: Stop, start: float) -> tuple[str, Exception]:
        """(for the log, what to raise) of a connection that failed."""
        if stop.is_set():
            return "cancelled", Cancelled()
        if isinstance(error, TimeoutError) or time.monotonic() - start >= self.seconds:
            return "timeout", WriterError(
                f"{self.url} did not answer within {self.seconds:g} s. Try again later, or allow more time.", transient=True
            )
        if isinstance(error, ssl.SSLCertVerificationError):
            return "certificate", WriterError(
                f"The certificate of {self.url} cannot be trusted ({error.verify_message}), so nothing was sent. Ask who runs the server.",
                fatal=True,
            )
        if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
            return "not https", WriterError(
                f"What answers at {self.url} does not speak https, so nothing was sent. Write http:// for a server without encryption.",
                fatal=True,
            )
        if refused := re.match(r"Tunnel connection failed: (\d+)", str(error)):
            return "proxy", WriterError(
                f"The proxy of this network does not connect to {self.url} (status {refused[1]}), so nothing was sent. "
                "Ask who runs the network.",
                fatal=refused[1] < "500",
                transient=refused[1] >= "500",
            )
        if isinstance(error, socket.gaierror):
            return "unknown host", WriterError(
                f"There is no host {urlsplit(self.url).hostname}. Check the endpoint's address and the network.", transient=True
            )
        if isinstance(error, ConnectionRefusedError):
            return "refused", WriterError(f"Nothing answers at {self.url}. Start the server, or check the address.", transient=True)
        return "cut", WriterError(f"The connection to {self.url} was cut before the whole answer came.", transient=True)

    def _refused(self, status: int, headers, data: bytes, request: Request) -> Exception:
        said, setting = _complaint(data, self._key)
        if status in (400, 422) and setting in _OPTIONAL and setting in json.loads(request.body):
            return _Unsupported(setting)
        words = f" It says: {said}" if said else ""
        if status in (401, 403):
            return WriterError(f"{self.url} does not accept the key.{words} Check the key in the keyring or the environment.", fatal=True)
        if 300 <= status < 400:
            return WriterError(
                f"{self.url} sends elsewhere, which is not followed because you agreed to this address only. Give the new address.",
                fatal=True,
            )
        if status == 404:
            return WriterError(
                f"{self.url} has no chat completions or no model {self.model!r}.{words} Check address and model.", fatal=True
            )
        if status in (408, 409, 425, 429) or status >= 500:
            reason = "asks to wait" if status == 429 else f"failed with status {status}"
            return WriterError(f"{self.url} {reason}.{words}", transient=True, retry_after=_retry_after(headers.get("Retry-After")))
        return WriterError(f"{self.url} refused the request with status {status}.{words}")


class _Unsupported(Exception):
    def __init__(self, setting: str):
        super().__init__(setting)
        self.setting = setting


def _shut(sock: socket.socket) -> None:
    # SSLSocket.shutdown would drop the encryption that another thread is reading through
    with suppress(OSError):  # closed already
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _connection(url: str, timeout: float) -> http.client.HTTPConnection:
    """To the host itself, or through the system's proxy as an encrypted tunnel; never in clear through a proxy."""
    parts = urlsplit(url)
    if parts.scheme == "http":
        return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout)
    context = ssl.create_default_context()
    proxy = urllib.request.getproxies().get("https")
    if proxy and not is_loopback(url) and not urllib.request.proxy_bypass(parts.hostname):
        through = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        if through.hostname:
            connection = http.client.HTTPSConnection(through.hostname, through.port or 80, timeout=timeout, context=context)
            connection.set_tunnel(parts.hostname, parts.port or 443)
            return connection
    return http.client.HTTPSConnection(parts.hostname, parts.port or 443, timeout=timeout, context=context)


def _read(data: bytes) -> tuple[str, tuple[int | None, int | None]]:
    """Text and tokens of a whole, well-formed answer."""
    try:
        answer = json.loads(data)
        choice = answer["choices"][0]
        text, ended = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise WriterError(
            "The endpoint's answer is not a chat completion. Check that its address ends as the server's manual says, often in /v1.",
            transient=True,
        ) from error
    if not isinstance(text, str) or not (text := THINKING.sub("", text).strip()):
        raise WriterError("The model gave an empty answer. Try another model.", transient=True)
    if ended == "length":
        raise WriterError("The model's answer was cut off, because it was longer than allowed. Try another model.")
    return text, _tokens(answer.get("usage"))


def _tokens(usage) -> tuple[int | None, int | None]:
    usage = usage if isinstance(usage, dict) else {}
    number: Callable = lambda v: v if isinstance(v, int) and 0 <= v < 1 << 40 else None  # noqa: E731
    return number(usage.get("prompt_tokens")), number(usage.get("completion_tokens"))


def _complaint(data: bytes, key: str | None) -> tuple[str, str | None]:
    """(what the server says, the setting it complains of) from an error's body; short, on one line, without the key."""
    setting = None
    try:
        error = json.loads(data)["error"]
        said = error["message"] if isinstance(error, dict) else error
        setting = error.get("param") if isinstance(error, dict) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        said = "" if data.lstrip().startswith(b"<") else data[:4000].decode("utf-8", "replace")
    said = " ".join("".join(c if c.isprintable() else " " for c in str(said)).split())
    said = said.replace(key, "(key)") if key else said  # before it is cut, which might leave half a key
    return said[:200], setting if isinstance(setting, str) else None


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number of seconds, or a date."""
    if not value:
        return None
    if re.fullmatch(r"\s*\d{1,6}(\.\d+)?\s*", value):
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())
