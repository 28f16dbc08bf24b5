"""A bucket served on the loopback, as Google's clients and TensorStore talk to it.

What the emulator leaves out and this project relies on is added: what is read says its generation,
and a write or removal may depend on it.
"""

import contextlib
import functools
import http
import http.server
import logging
import threading
import urllib.parse
from collections.abc import Iterator

from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

BUCKET = "bucket"


class _Handler(RequestHandler):
    """The emulator's, with generations."""

    def do_POST(self):
        if "/moveTo/" in self.path:  # which the emulator lacks; clients then copy and remove
            self.send_error(http.HTTPStatus.BAD_REQUEST)
        else:
            self._on_condition(super().do_POST)

    def do_DELETE(self):
        self._on_condition(super().do_DELETE)

    def _on_condition(self, act):
        if self._query().get("ifGenerationMatch", [self._generation()]) == [self._generation()]:
            act()
        else:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_error(http.HTTPStatus.PRECONDITION_FAILED)

    def _query(self):
        return urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)

    def _generation(self):
        """Of the object that is asked for; "0" where there is none."""
        place = urllib.parse.urlsplit(self.path).path.partition("/o/")[2]
        name = self._query().get("name", [urllib.parse.unquote(place)])[0]
        return self.storage.objects.get(BUCKET, {}).get(name, {}).get("generation", "0")

    def end_headers(self):
        if self.command == "GET":
            self.send_header("x-goog-generation", self._generation())
        super().end_headers()

    def log_message(self, format, *args):
        pass


class _Storage(Storage):
    def _write_config_to_file(self):
        """Not needed, and longer with every object."""


class _Server(http.server.HTTPServer):
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """Clients ask two things at once and hang up when the first answer is enough."""


@contextlib.contextmanager
def served() -> Iterator[dict[str, str]]:
    """Serves an empty gs://bucket; gives the environment in which all clients find it."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    storage = _Storage(use_memory_fs=True)
    buckets.create_bucket(BUCKET, storage)
    server = _Server(("127.0.0.1", 0), functools.partial(_Handler, storage))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            # Only this address is asked: no metadata server, no second protocol.
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "unused",
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
