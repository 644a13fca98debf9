"""An object store of the S3 protocol in this process, which counts what it is asked and can go away."""

import contextlib
import threading
import urllib.request
from collections import Counter
from functools import partial

import pytest

KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}
"""What a client of it needs in its environment."""


class ObjectStore:
    """A server with one bucket.

    Attributes:
        requests: method → how often; cleared by whoever counts.
        failures: how many of the next requests are refused.
        refusal: how: as by an overloaded store, unless set.
    """

    def __init__(self):
        # Half a second's import, for the tests that need it.
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):
            def log(self, *arguments):
                """Write no log."""

        self.requests = Counter()
        self.failures = 0
        self.refusal = "503 Slow Down"
        self._application = DomainDispatcherApplication(create_backend_app)
        self._make_server = partial(make_server, threaded=True, request_handler=Silent)
        self._port = 0
        self.come_back()
        self.endpoint = f"127.0.0.1:{self._server.server_port}"
        bucket = urllib.request.Request(f"http://{self.endpoint}/bucket", method="PUT")
        urllib.request.urlopen(bucket).close()
        self.requests.clear()

    def uri(self, path):
        """Of a folder in the bucket."""
        return f"s3://bucket/{path}?endpoint_override={self.endpoint}&scheme=http"

    def come_back(self):
        """Listen; what it holds is as it was."""
        self._server = self._make_server("127.0.0.1", self._port, self._answer)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def go_away(self):
        """Refuse connections."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ, start_response):
        if self.failures > 0:
            self.failures -= 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(self.refusal, [("Content-Length", "0")])
            return []
        self.requests[environ["REQUEST_METHOD"]] += 1
        return self._application(environ, start_response)


@contextlib.contextmanager
def started_store():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        store = ObjectStore()
        try:
            yield store
        finally:
            store.go_away()
