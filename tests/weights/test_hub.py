"""Download, check and cache of released checkpoints, against a local server in the hub's place."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from official_checkpoints import arrays, save_model
from tessera_fast.errors import WeightsError
from tessera_fast.spec import RELEASED
from tessera_fast.weights import hub, load_weights
from tessera_fast.weights.checkpoint import digest

NANO = RELEASED["v2-nano"]
URL = "/geotessera/TESSERA-V-2.0-2B-N/resolve/main/ckpt/student_nano.pt"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# The hub client reads its environment on import, hence a process per case. It pins the bytes to
# those of the test instead of the released ones.
CLIENT = """
import dataclasses, json, sys
from tessera_fast.weights import hub
from tessera_fast.errors import WeightsError
from tessera_fast.weights import load_weights
sha256, action, stall = sys.argv[1:]
hub.STALL = float(stall)
hub.RELEASES["v2-nano"] = dataclasses.replace(hub.RELEASES["v2-nano"], sha256=sha256)
try:
    if action == "download":
        print(json.dumps({"path": str(hub.download("v2-nano"))}))
    else:
        w = load_weights("v2-nano")
        query = w.tensors["s1_backbone.attn_pool.query.weight"].tolist()
        print(json.dumps({"source": w.source, "sha256": w.sha256, "query": query}))
except WeightsError as error:
    print(json.dumps({"error": str(error)}))
"""


@dataclass
class Hub:
    """What the local server has and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""
    hangs_up: bool = False
    silent: bool = False  # connections are taken and never answered
    stops_at: int = -1  # bytes of a body after which nothing more comes
    wrong_first: int = 0  # so many bodies are damaged before they are right
    over: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def server():
    pytest.importorskip("huggingface_hub")
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, with_body):
            state.asked.append(f"{self.command} {self.path}")
            if state.silent:
                state.over.wait(60)
            if state.hangs_up or state.silent:
                self.close_connection = True
                return
            body = state.files.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("X-Repo-Commit", COMMIT)
            if body is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            else:
                self.send_header("ETag", f'"{hash(body) & 0xFFFFFFFFFFFF:x}"')
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if with_body and body:
                if state.wrong_first > 0:
                    state.wrong_first -= 1
                    body = body[:-1] + b"x"
                self.wfile.write(body[: state.stops_at] if state.stops_at >= 0 else body)
                if state.stops_at >= 0:
                    state.over.wait(60)

        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.endpoint = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield state
    state.over.set()
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("hub") / "student_nano.pt", NANO)


def client(tmp_path, endpoint, sha256, action="load", stall=60, **env):
    """Run CLIENT with a cache of its own; its answer as a dict, with the lines that it wrote."""
    drop = ("HF_", "HUGGING", "TESSERA_")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
    clean |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_XET": "1",
        **env,
    }
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CLIENT, sha256, action, str(stall)],
        check=False,
        env=clean,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    if "error" in answer:
        lines = [line for line in run.stderr.splitlines() if "student_nano.pt: " not in line]
        assert lines == [], "one error says it all"  # the bar of the download is no line
    return answer


def test_download_then_cache_then_offline(server, official, tmp_path):
    server.files[URL] = official.read_bytes()
    sha256 = digest(official)
    want = {
        "source": f"hub:geotessera/TESSERA-V-2.0-2B-N/ckpt/student_nano.pt@{COMMIT}",
        "sha256": sha256,
        "query": arrays(NANO)["s1_backbone.attn_pool.query.weight"].tolist(),
    }
    assert client(tmp_path, server.endpoint, sha256) == want
    assert server.asked.count(f"GET {URL}") == 1

    server.asked.clear()
    assert client(tmp_path, server.endpoint, sha256) == want
    cached = client(tmp_path, server.endpoint, sha256, "download")["path"]
    assert digest(tmp_path / cached) == sha256
    assert not any(URL in line for line in server.asked)

    assert client(tmp_path, "http://127.0.0.1:9", sha256, HF_HUB_OFFLINE="1") == want


@pytest.mark.parametrize("action", ["load", "download"])
def test_wrong_bytes(server, official, tmp_path, action):
    server.files[URL] = official.read_bytes()[:-1] + b"x"
    expected = hub.RELEASES["v2-nano"].sha256
    error = client(tmp_path, server.endpoint, expected, action)["error"]
    (blob,) = (tmp_path / "hf").rglob("student_nano.pt")
    assert f"expected sha256 {expected}, got {digest(blob)}" in error
    assert str(blob) in error and "also when it was fetched again" in error
    assert server.asked.count(f"GET {URL}") == 2


def test_a_damaged_file_in_the_cache_is_fetched_again(server, official, tmp_path):
    server.files[URL] = official.read_bytes()
    sha256 = digest(official)
    server.wrong_first = 1
    assert client(tmp_path, server.endpoint, sha256)["sha256"] == sha256
    assert server.asked.count(f"GET {URL}") == 2

    (link,) = (tmp_path / "hf").rglob("student_nano.pt")  # damage by the disk, later
    data = bytearray(official.read_bytes())
    data[5000] ^= 1
    link.resolve().write_bytes(data)
    error = client(tmp_path, "http://127.0.0.1:9", sha256)["error"]
    check_advice(error, sha256, "is damaged in the hub's cache")
    assert client(tmp_path, server.endpoint, sha256)["sha256"] == sha256
    assert server.asked.count(f"GET {URL}") == 3
    assert digest(link) == sha256


def check_advice(error, sha256=hub.RELEASES["v2-nano"].sha256, where="not in the hub's cache"):
    for part in (
        "v2-nano: ckpt/student_nano.pt of geotessera/TESSERA-V-2.0-2B-N",
        "4,288,221 bytes",
        sha256,
        where,
        "TESSERA_FAST_WEIGHTS",
        "weights=",
    ):
        assert part in error


def test_offline_and_absent(server, tmp_path):
    sha256 = hub.RELEASES["v2-nano"].sha256
    check_advice(client(tmp_path, server.endpoint, sha256, HF_HUB_OFFLINE="1")["error"])
    assert not server.asked


def test_not_on_the_server(server, tmp_path):
    error = client(tmp_path, server.endpoint, hub.RELEASES["v2-nano"].sha256)["error"]
    check_advice(error)
    assert f"HEAD {URL}" in server.asked and "404" in error


def test_a_broken_connection(server, tmp_path):
    server.hangs_up = True
    check_advice(client(tmp_path, server.endpoint, hub.RELEASES["v2-nano"].sha256)["error"])


def test_no_network_is_said_at_once(tmp_path):
    pytest.importorskip("huggingface_hub")
    start = time.monotonic()
    check_advice(client(tmp_path, "http://127.0.0.1:9", hub.RELEASES["v2-nano"].sha256)["error"])
    assert time.monotonic() - start < 15  # the client alone takes 24 s, and twelve lines


@pytest.mark.parametrize("how", ["at once", "in the middle"])
def test_a_hub_that_stalls(server, official, tmp_path, how):
    server.files[URL] = official.read_bytes()
    if how == "at once":
        server.silent = True
    else:
        server.stops_at = 1000
    start = time.monotonic()
    error = client(
        tmp_path, server.endpoint, hub.RELEASES["v2-nano"].sha256, stall=2, HF_HUB_ETAG_TIMEOUT="2"
    )["error"]
    check_advice(error)
    assert time.monotonic() - start < 20  # the client alone takes minutes


def test_without_the_hub_client(monkeypatch):
    monkeypatch.delenv("TESSERA_FAST_WEIGHTS", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"pip install 'tessera_fast\[hub\]'") as caught:
        load_weights("v2-nano")
    check_advice(str(caught.value))


def test_every_released_model_has_a_file():
    assert list(hub.RELEASES) == list(RELEASED)
    for name, release in hub.RELEASES.items():
        assert (release.repo is None) == name.startswith("v1")
        assert (release.sha256 is None) == (release.size is None) == name.startswith("v1")
        if release.sha256 is not None:
            assert len(bytes.fromhex(release.sha256)) == 32
            parameters = sum(int(np.prod(s)) for s in RELEASED[name].parameter_shapes().values())
            assert 0 < release.size - 4 * parameters < 100_000  # float32, and the zip around it
