"""HTTP for the API server of tests: connections, requests, answers and watches."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.api_server import routes
from tests.api_server.routes import Asked
from tests.api_server.store import Json, Refusal

if TYPE_CHECKING:
    from tests.api_server import ApiServer

_AUTHORIZATION: Final = "bearer a-token-for-tests"


class Server(ThreadingHTTPServer):
    """One thread for each connection; all are ended and joined."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, api: "ApiServer", tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._tls = tls
        self.api = api
        self.port = self.server_port
        self._open: dict[socket.socket, threading.Thread] = {}
        self._guard = threading.Lock()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._tls is not None:  # who connects is greeted in a thread of its own, when it writes
            connection = self._tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open[request] = threading.current_thread()
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._guard:
                self._open.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error."""

    def end_connections(self) -> None:
        with self._guard:
            left = dict(self._open)
        for connection in left:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in left.values():
            thread.join(timeout=10)


class _Handler(BaseHTTPRequestHandler):
    """One connection; requests come one after another."""

    protocol_version = "HTTP/1.1"
    server: Server
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Say nothing: the requests are recorded."""

    def _any(self) -> None:
        asked = self._asked()
        try:
            self._check_credentials()
            fault = self.server.api.fault_for(asked.method, asked.path)
            if fault is not None and fault.is_after:
                routes.answer(self.server.api, asked)
            if fault is not None and not fault.status:
                self._record(asked, 0)
                self.close_connection = True
                return
            if fault is not None:
                seconds = fault.retry_after_s
                header = {} if seconds is None else {"Retry-After": str(seconds)}
                self._refuse(asked, Refusal(fault.status, "Injected", "by the test"), header)
                return
            if asked.method == "GET" and asked.query.get("watch") in {"true", "1", "True"}:
                self._watch(asked)
                return
            status, document = routes.answer(self.server.api, asked)
        except Refusal as refusal:
            self._refuse(asked, refusal, {})
            return
        self._record(asked, status)
        self._send(status, document, {})

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any  # noqa: N815 - as http.server wants

    def _asked(self) -> Asked:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        return Asked(
            method=self.command,
            path=unquote(url.path),
            query=dict(parse_qsl(url.query, keep_blank_values=True)),
            content_type=self.headers.get("Content-Type") or "",
            body=json.loads(raw) if raw else None,
        )

    def _check_credentials(self) -> None:
        if (self.headers.get("Authorization") or "").lower() != _AUTHORIZATION:
            raise Refusal(401, "Unauthorized", "Unauthorized")

    def _record(self, asked: Asked, status: int) -> None:
        self.server.api.requests.append(asked.request(status))

    def _refuse(self, asked: Asked, refusal: Refusal, headers: dict[str, str]) -> None:
        self._record(asked, refusal.code)
        self._send(refusal.code, status_of(refusal), headers)

    def _send(self, status: int, document: Json, headers: dict[str, str]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _watch(self, asked: Asked) -> None:
        """Send changes until the client's timeout, the test, or the server's end."""
        resource, wants = routes.collection(self.server.api, asked)
        version = int(asked.query.get("resourceVersion") or 0)
        asked_in = self.server.api.watch_epoch, self.server.api.bookmarks
        self._record(asked, 200)  # from here on a test may end it
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if version < self.server.api.store.oldest:
            gone = Refusal(410, "Expired", f"too old resource version: {version}")
            self._chunk({"type": "ERROR", "object": status_of(gone)})
            self._chunk(None)
            return
        is_whole = self._stream(asked, version, asked_in, (resource, wants))
        if is_whole:
            self._chunk(None)
        self.close_connection = not is_whole

    def _stream(
        self,
        asked: Asked,
        version: int,
        asked_in: tuple[int, int],
        what: tuple[str, Callable[[Json], bool]],
    ) -> bool:
        """Send what happens; tell whether the stream ended as it should."""
        api, store = self.server.api, self.server.api.store
        wanted_s = float(asked.query.get("timeoutSeconds") or api.watch_max_s)
        ends_at = time.monotonic() + min(wanted_s, api.watch_max_s)
        epoch, bookmarks = asked_in
        has_bookmarks = asked.query.get("allowWatchBookmarks") in {"true", "True"}
        while True:
            with store.changed:
                changes = api.changes(what[0], version, what[1])
                if not changes and api.bookmarks == bookmarks:
                    if api.is_ending or api.watch_epoch != epoch:
                        return False
                    left_s = ends_at - time.monotonic()
                    if left_s <= 0:
                        return True
                    store.changed.wait(left_s)
                    continue
                reached = store.version
                is_bookmark, bookmarks = api.bookmarks != bookmarks, api.bookmarks
            for change in changes:
                version = change.version
                self._chunk({"type": change.kind, "object": change.object})
            if is_bookmark and has_bookmarks:
                self._chunk({"type": "BOOKMARK", "object": _empty_slice(reached)})

    def _chunk(self, document: Json | None) -> None:
        data = b"" if document is None else json.dumps(document).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


def _empty_slice(version: int) -> Json:
    """Return what a bookmark holds: an object of the kind, of which only the version counts."""
    return {
        "kind": "ResourceSlice",
        "apiVersion": "resource.k8s.io/v1",
        "metadata": {"resourceVersion": str(version)},
        "spec": {"driver": "", "pool": {"name": "", "generation": 0, "resourceSliceCount": 0}},
    }


def status_of(refusal: Refusal) -> Json:
    """Return the Status object that the API server answers with."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": str(refusal),
        "reason": refusal.reason,
        "code": refusal.code,
    }
