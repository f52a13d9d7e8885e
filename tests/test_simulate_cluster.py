"""A cluster that is asked for what there is, over real sockets."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from kata_gpu.errors import HostError
from kata_gpu.publish.kubernetes import cluster
from tests.simulations.objects import (
    Tree,
    claim,
    class_,
    exactly,
    gang,
    gpus,
    node,
    pod,
    slice_,
    template,
)
from tests.test_cli import COMMAND, ENVIRONMENT, Done, complaint

DRA: Final = "/apis/resource.k8s.io/v1"
_PAGE_MAX: Final = 2
TOKEN: Final = "secret"  # noqa: S105 - of the server below


class ApiServer(ThreadingHTTPServer):
    """Lists collections in pages, to who has the token; what it does not have is 404."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.collections: dict[str, list[Tree]] = {}
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.server.asked.append(self.path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._say(401, _status("Unauthorized"))
        elif parts.path in self.server.answers:
            self._say(*self.server.answers[parts.path])
        elif parts.path in self.server.collections:
            self._say(200, self._page(parts.path, parse_qs(parts.query)))
        else:
            self._say(404, b"404 page not found")

    def _page(self, path: str, query: dict[str, list[str]]) -> bytes:
        items = self.server.collections[path]
        limit = min(int(query["limit"][0]), _PAGE_MAX)
        start = int(query.get("continue", ["0"])[0])
        end = start + limit
        metadata = {"continue": str(end)} if end < len(items) else {}
        plain = [{k: v for k, v in i.items() if k not in {"kind", "apiVersion"}} for i in items]
        kind, version = (items[0]["kind"], items[0]["apiVersion"]) if items else ("", "v1")
        page = {
            "kind": f"{kind}List",
            "apiVersion": version,
            "metadata": metadata,
            "items": plain[start:end],
        }
        return json.dumps(page).encode()

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _status(message: str) -> bytes:
    return json.dumps({"kind": "Status", "message": message}).encode()


@pytest.fixture
def server() -> Iterator[ApiServer]:
    made = ApiServer()
    made.collections = {
        "/api/v1/nodes": [node("n1", {"cpu": "8", "pods": "10"}), node("n2"), node("n3")],
        "/api/v1/pods": [pod("running", nodeName="n1", resources={"cpu": "6"}), pod("waits")],
        f"{DRA}/resourceslices": [slice_("n1", gpus(1)), slice_("n2", gpus(1))],
        f"{DRA}/deviceclasses": [class_()],
        f"{DRA}/resourceclaims": [claim("held", exactly(), has=(("n2", "gpu-0"),))],
        f"{DRA}/resourceclaimtemplates": [
            template("one", exactly()),
            template("unused", exactly()),
        ],
        "/apis/node.k8s.io/v1/runtimeclasses": [],
        "/apis/scheduling.run.ai/v2alpha2/podgroups": [gang("other", 5)],
    }
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def kubeconfig(tmp_path: Path, url: str, token: str = TOKEN) -> Path:
    path = tmp_path / "kubeconfig"
    named = {"name": "a"}
    body: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "a",
        "clusters": [{**named, "cluster": {"server": url}}],
        "users": [{**named, "user": {"token": token}}],
        "contexts": [{**named, "context": {"cluster": "a", "user": "a"}}],
    }
    path.write_text(yaml.safe_dump(body))
    return path


def simulate(config: Path, *argv: object) -> Done:
    return subprocess.run(
        [*COMMAND, "simulate", *map(str, argv), "--cluster"],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**ENVIRONMENT, "KUBECONFIG": str(config), "HOME": os.devnull},
        timeout=60,
    )


def wanted(tmp_path: Path, *trees: Tree) -> Path:
    path = tmp_path / "pods.yaml"
    path.write_text("---\n".join(yaml.safe_dump(found) for found in trees))
    return path


def test_every_page_of_a_collection_is_asked_for(tmp_path: Path, server: ApiServer) -> None:
    with cluster.connected(str(kubeconfig(tmp_path, server.url))) as found:
        nodes = found.list_all("/api/v1/nodes") or []
    assert [(each["kind"], each["metadata"]["name"]) for each in nodes] == [
        *(("Node", "n1"), ("Node", "n2"), ("Node", "n3")),
    ]
    assert server.asked == [
        "/api/v1/nodes?limit=500",
        "/api/v1/nodes?limit=500&continue=2",
    ]


def test_a_collection_that_a_cluster_has_not_is_none(tmp_path: Path, server: ApiServer) -> None:
    with cluster.connected(str(kubeconfig(tmp_path, server.url))) as found:
        assert found.list_all("/apis/scheduling.run.ai/v2/queues") is None


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (403, _status("nodes is forbidden"), "403: nodes is forbidden"),
        (500, b"oops", "500: no JSON: oops"),
        (200, b"[]", "200: no object"),
        (200, b'{"items": [1]}', "the answer is no list of objects"),
        (200, b'{"items": {}, "metadata": null}', ""),
        (410, _status("expired"), "it took too long"),
        (200, b"\xff", "no JSON"),
    ],
)
def test_an_answer_that_is_no_list_is_told(
    tmp_path: Path, server: ApiServer, status: int, body: bytes, said: str
) -> None:
    server.answers["/api/v1/nodes"] = (status, body)
    with cluster.connected(str(kubeconfig(tmp_path, server.url))) as found:
        if not said:
            assert found.list_all("/api/v1/nodes") == []
            return
        with pytest.raises(HostError) as raised:
            found.list_all("/api/v1/nodes")
    assert said in str(raised.value)


def test_a_wrong_token_is_told(tmp_path: Path, server: ApiServer) -> None:
    with (
        cluster.connected(str(kubeconfig(tmp_path, server.url, "other"))) as found,
        pytest.raises(HostError, match="401: Unauthorized"),
    ):
        found.list_all("/api/v1/nodes")


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    with (
        cluster.connected(str(kubeconfig(tmp_path, "http://127.0.0.1:1"))) as found,
        pytest.raises(HostError, match="cannot list /api/v1/nodes"),
    ):
        found.list_all("/api/v1/nodes")


@pytest.mark.parametrize("text", ["", "]", "a: 1", "[]", "clusters: 5", "current-context: x"])
def test_a_kubeconfig_that_is_none_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(HostError, match="cannot ask a cluster"), cluster.connected(str(path)):
        pass


def test_a_pod_is_placed_beside_what_the_cluster_has(tmp_path: Path, server: ApiServer) -> None:
    small = pod("small", "one", resources={"cpu": "2"})
    large = pod("large", resources={"cpu": "3"}, nodeSelector={"disk": "ssd"})
    done = simulate(
        kubeconfig(tmp_path, server.url), wanted(tmp_path, small, large, pod("more", "one"))
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.splitlines()[:4] == [
        "POD            VERDICT  NODE  DEVICES",
        "default/small  placed   n1    gpu-0",
        "default/large  refused  -     -",
        "default/more   refused  -     -",
    ]
    assert "gpu-0: allocated to claim default/held" in done.stdout


def test_what_a_file_says_of_an_object_holds_instead(tmp_path: Path, server: ApiServer) -> None:
    other = template("one", exactly(count=2))
    done = simulate(kubeconfig(tmp_path, server.url), wanted(tmp_path, other, pod("a", "one")))
    assert done.returncode == 3
    assert "needs 2 devices" in done.stdout


def test_without_a_cluster_there_is_one_line(tmp_path: Path) -> None:
    said = complaint(simulate(tmp_path / "none", wanted(tmp_path, pod("a"))))
    assert "cannot ask a cluster" in said
    assert "set KUBECONFIG" in said


def test_a_cluster_without_resource_claims_is_told(tmp_path: Path, server: ApiServer) -> None:
    del server.collections[f"{DRA}/resourceslices"]
    said = complaint(simulate(kubeconfig(tmp_path, server.url), wanted(tmp_path, pod("a"))))
    assert "as Kubernetes 1.34 has" in said
