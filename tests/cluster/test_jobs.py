import datetime
import ipaddress
import os
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from raysearch.cluster import jobs
from raysearch.cluster.auth import auth_environment
from raysearch.cluster.jobs import JobRequest, JobsClient
from raysearch.errors import ConfigError, JobError
from tests.support.patience import HANG_SECONDS, wait_until
from tests.support.ray_head import free_ports


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_from_submission_to_the_end(ray_head, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    (tmp_path / "job.py").write_text(
        "import os, sys\n"
        "from raysearch.cluster.session import ray_session\n"
        "print(sys.argv[1:], os.environ['COLOUR'], sorted(os.listdir()))\n"
        "with ray_session('auto') as session:\n"
        "    print('CPUs', session.resources['CPU'], session.is_embedded)\n"
        "sys.exit(3)\n"
    )
    for folder in (".git", "runs", "kept"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").touch()
    client = JobsClient(ray_head.address, ray_head.token_file)
    command = [sys.executable, "job.py", "two words", "$HOME; false"]
    request = JobRequest(command, "run-1", working_dir=tmp_path, env_vars={"COLOUR": "blue"})
    assert client.submit(request) == "run-1"
    with pytest.raises(JobError, match="already has a job run-1"):
        client.submit(request)
    assert client.find("run-1") == "run-1"
    text = "".join(client.follow_logs("run-1", poll_seconds=0.3))
    assert "['two words', '$HOME; false'] blue ['job.py', 'kept']" in text
    assert "CPUs 3.0 False" in text
    assert client.logs("run-1") == text
    state = client.newest_state("run-1")
    assert (state.status, state.is_final, state.exit_code) == ("FAILED", True, 3)

    assert not client.stop("run-1")
    client.submit(JobRequest(["sleep", "100000"], "run-2"))
    wait_until(lambda: client.state("run-2").status == "RUNNING")
    assert client.stop("run-2")
    wait_until(lambda: client.state("run-2").is_final)
    assert client.state("run-2").status == "STOPPED"


@pytest.mark.ray
@pytest.mark.slow
def test_the_token_is_wanted_and_checked(ray_head, tmp_path, monkeypatch):
    for variable in ("RAYSEARCH_TOKEN", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(JobError, match=r"wants a token \(HTTP 401\)"):
        JobsClient(ray_head.address).state("run-1")
    monkeypatch.setenv("RAYSEARCH_TOKEN", "wrong")
    with pytest.raises(JobError, match=r"refuses this token \(HTTP 403\)"):
        JobsClient(ray_head.address).state("run-1")


class Locked(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.tokens.append(self.headers["Authorization"])
        self.send_error(401)

    def log_message(self, *arguments):
        pass


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/missing"):
            self.send_error(404)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Hello")

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize("path", ["", "/missing"])
def test_another_web_server_is_told_from_a_dashboard(path):
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        message = f"^what answers is no Ray dashboard at http://127.0.0.1:{server.server_port}{path}: "
        with pytest.raises(JobError, match=message):
            JobsClient(f"http://127.0.0.1:{server.server_port}{path}").state("run-1")
        server.shutdown()


def test_a_token_that_ray_remembers_of_another_cluster_is_not_sent(tmp_path, monkeypatch):
    from ray._raylet import AuthenticationTokenLoader

    for variable in ("RAYSEARCH_TOKEN", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    elsewhere = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    with HTTPServer(("127.0.0.1", 0), Locked) as server, auth_environment(elsewhere):
        server.tokens = []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        assert AuthenticationTokenLoader.instance().get_token_for_http_header()
        os.environ.pop("RAY_AUTH_TOKEN")
        with pytest.raises(JobError, match=r"wants a token \(HTTP 401\)"):
            JobsClient(f"127.0.0.1:{server.server_port}").state("run-1")
        server.shutdown()
    assert server.tokens == [None]


def self_signed(folder):
    """A certificate that no authority has signed but itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    kinds = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*kinds))
    (folder / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return folder / "ca.pem", folder / "key.pem"


def test_a_certificate_is_checked_by_the_authority_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSEARCH_TOKEN", "secret")
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with HTTPServer(("127.0.0.1", 0), Locked) as server:
        server.tokens = []
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"https://127.0.0.1:{server.server_port}"
        with pytest.raises(JobError, match=r"certificate .* is not trusted.*--ca-file FILE"):
            JobsClient(address).state("run-1")
        assert server.tokens == [], "nothing is said to whom nobody vouches for"
        with pytest.raises(JobError, match="wants a token"):
            JobsClient(address, verify=str(certificate)).state("run-1")
        server.shutdown()
    assert server.tokens == ["Bearer secret"]
    with pytest.raises(ConfigError, match=r"--ca-file names .*none.pem, which is no file"):
        JobsClient(address, verify=str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match=r"--ca-file names .*, which holds no certificate .*\(PEM\)"):
        JobsClient(address, verify=__file__)


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_is_joined_by_its_address_and_two_workers_share_a_gpu(ray_head, tmp_path):
    code = (
        "import os\n"
        "from raysearch.cluster.ray_pool import RayPool\n"
        "from raysearch.cluster.session import ray_session\n"
        "from raysearch.config import ClusterConfig\n"
        "from raysearch.errors import PoolError\n"
        "from tests.support.pool_units import meet_workers\n"
        "half = ClusterConfig(workers=2, gpus_per_worker=0.5, device='cuda')\n"
        "for token in ('', 'wrong', os.environ.pop('RIGHT')):\n"
        "    os.environ['RAYSEARCH_TOKEN'] = token\n"
        "    try:\n"
        f"        with ray_session('127.0.0.1:{ray_head.port}') as session:\n"
        "            workers = meet_workers(RayPool(None, half), 2)\n"
        "            print(session.resources['CPU'], len({int(worker['pid']) for worker in workers}),"
        " {str(worker['gpus']) for worker in workers})\n"
        "    except PoolError as error: print(error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    environment |= {"RIGHT": ray_head.token_file.read_text(), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    missing, wrong, joined = done.stdout.splitlines()
    assert "wants a token, and none was found" in missing
    assert "refuses the token that was found" in wrong
    assert joined == "3.0 2 {'0'}", done.stderr


@pytest.mark.parametrize(
    "address", ["ray://head:10001", "auto", "local", "", "http://", "h:x", "http://h:99999"]
)
def test_other_forms_of_address_are_refused(address):
    with pytest.raises(ConfigError, match="is none of a cluster's dashboard"):
        JobsClient(address).state("run-1")


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("head", "http://head:8265"),
        ("head:9000", "http://head:9000"),
        ("https://ray.example.org/", "https://ray.example.org"),
        ("http://10.0.0.1:8265", "http://10.0.0.1:8265"),
    ],
)
def test_addresses_are_completed(address, url):
    assert jobs._url(address) == url


def test_an_unreachable_cluster_is_explained():
    (port,) = free_ports(1)
    with pytest.raises(JobError, match=f"no Ray dashboard answers at http://127.0.0.1:{port}"):
        JobsClient(f"127.0.0.1:{port}").submit(JobRequest(["true"], "run-1"))
