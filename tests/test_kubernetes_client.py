"""The client asks the API server as it must be asked, and says what comes of it."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from kata_gpu.errors import HostError
from kata_gpu.model.kubernetes import FABRIC_DRIVER, GPU_DRIVER
from kata_gpu.model.slices import NodeIdentity, Object
from kata_gpu.plan.kubernetes import slices
from kata_gpu.publish.kubernetes import client
from kata_gpu.publish.kubernetes.client import KubernetesClient
from kata_gpu.publish.kubernetes.errors import (
    ApiError,
    ConflictError,
    ExpiredError,
    NotFoundError,
    TooManyRequestsError,
    refusal,
)
from kata_gpu.publish.kubernetes.watching import Watch
from tests.api_server import TOKEN, ApiServer, api_server
from tests.kubernetes_devices import gpu, with_taint
from tests.waiting import until

T = TypeVar("T")
NODE: Final = NodeIdentity(name="node-1", uid="u")


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with api_server() as api:
        api.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}})
        yield api


def ask(api: ApiServer, path: Path, use: Callable[[KubernetesClient], Awaitable[T]]) -> T:
    """Let *use* have a client of that server."""

    async def main() -> T:
        async with connected(api, path) as asking:
            return await use(asking)

    return asyncio.run(main())


@asynccontextmanager
async def connected(api: ApiServer, path: Path) -> AsyncIterator[KubernetesClient]:
    kubeconfig = api.kubeconfig(path / "kubeconfig")
    async with client.connected(str(kubeconfig), agent="kata-gpu/test") as asking:
        yield asking


def slice_of(*buses: int) -> Object:
    return slices.slices(GPU_DRIVER, NODE, [gpu(bus) for bus in buses], 1)[0]


# Requests


def test_a_node_is_got_as_it_is_stored(api: ApiServer, tmp_path: Path) -> None:
    node = ask(api, tmp_path, lambda c: c.get_node("node-1"))
    assert node == api.objects("Node")[0]


def test_what_is_not_there_is_not_found(api: ApiServer, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r'^cannot GET /api/v1/nodes/x: 404: nodes "x" not f'):
        ask(api, tmp_path, lambda c: c.get_node("x"))


def test_a_name_with_a_path_in_it_leads_nowhere_else(api: ApiServer, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nodes/\.\.%2Fevents"):
        ask(api, tmp_path, lambda c: c.get_node("../events"))


def test_a_claim_is_got_with_fields_that_nobody_knows_yet(api: ApiServer, tmp_path: Path) -> None:
    claim = api.put(
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            "metadata": {"name": "c", "namespace": "ns"},
            "status": {"ofTomorrow": {"x": [1]}},
        }
    )
    assert ask(api, tmp_path, lambda c: c.get_claim("ns", "c")) == claim


def test_slices_are_created_listed_replaced_and_deleted(api: ApiServer, tmp_path: Path) -> None:
    async def use(asking: KubernetesClient) -> None:
        made = await asking.create_slice(slice_of(1))
        assert made["metadata"]["name"].startswith("00000-gpu.kata-passthrough.io-node-1-")
        listing = await asking.list_slices(GPU_DRIVER, "node-1")
        assert [s["metadata"]["uid"] for s in listing.items] == [made["metadata"]["uid"]]
        assert (await asking.list_slices(FABRIC_DRIVER, "node-1")).items == ()
        assert (await asking.list_slices(GPU_DRIVER, "node-2")).items == ()
        (changed,) = slices.plan(GPU_DRIVER, NODE, [gpu(2)], [made]).replaces
        stored = await asking.replace_slice(changed)
        assert stored["spec"]["devices"][0]["name"] == "0000-02-00-0"
        with pytest.raises(ConflictError, match="the object has been modified"):
            await asking.replace_slice(changed)
        with pytest.raises(ConflictError):
            await asking.delete_slice(made)
        await asking.delete_slice(stored)
        with pytest.raises(NotFoundError):
            await asking.delete_slice(stored)

    ask(api, tmp_path, use)
    assert api.objects("ResourceSlice") == []


def test_a_slice_against_the_rules_is_refused_with_the_reasons(
    api: ApiServer, tmp_path: Path
) -> None:
    body = json.loads(json.dumps(slice_of(1)))
    body["spec"]["devices"][0]["name"] = "0000:01:00.0"
    body["spec"]["pool"]["resourceSliceCount"] = 0
    with pytest.raises(ApiError, match=r"422: .*resourceSliceCount.*'0000:01:00.0'"):
        ask(api, tmp_path, lambda c: c.create_slice(body))


@pytest.mark.parametrize("field", ["driver", "nodeName"])
def test_what_is_immutable_is_not_changed(api: ApiServer, tmp_path: Path, field: str) -> None:
    async def use(asking: KubernetesClient) -> None:
        made = await asking.create_slice(slice_of(1))
        await asking.replace_slice({**made, "spec": {**made["spec"], field: "other"}})

    with pytest.raises(ApiError, match=rf"spec.{field}: Invalid value: field is immutable"):
        ask(api, tmp_path, use)


def test_a_server_without_the_api_is_not_found(api: ApiServer, tmp_path: Path) -> None:
    api.has_dra = False
    with pytest.raises(NotFoundError, match="404 page not found"):
        ask(api, tmp_path, lambda c: c.list_slices(GPU_DRIVER, "node-1"))


# Server-side apply


def test_labels_of_others_stay_and_own_ones_go_when_they_are_applied_no_more(
    api: ApiServer, tmp_path: Path
) -> None:
    metadata = {"name": "node-1", "labels": {"theirs": "x"}}
    api.put({"apiVersion": "v1", "kind": "Node", "metadata": metadata})

    async def use(asking: KubernetesClient) -> list[object]:
        found = []
        for labels in ({"a": "1", "b": "1"}, {"a": "2"}, {}):
            node = await asking.apply_node_labels("node-1", labels, manager="kata-gpu")
            found.append(node["metadata"]["labels"])
        return found

    assert ask(api, tmp_path, use) == [
        {"theirs": "x", "a": "1", "b": "1"},
        {"theirs": "x", "a": "2"},
        {"theirs": "x"},
    ]


# Refusals and failures


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_has_too_much_to_do_says_when_to_come_again(
    api: ApiServer, tmp_path: Path, status: int
) -> None:
    api.fail(status, retry_after_s=17)
    with pytest.raises(TooManyRequestsError) as caught:
        ask(api, tmp_path, lambda c: c.get_node("node-1"))
    assert caught.value.retry_after_s == 17


@pytest.mark.parametrize(
    ("header", "retry_after_s"),
    [(None, 1.0), ("5", 5.0), ("-5", 1.0), ("x", 1.0), ("²", 1.0), ("Wed, 21 Oct", 1.0)],
)
def test_a_time_to_come_again_is_a_number_or_is_not_heeded(
    header: str | None, retry_after_s: float
) -> None:
    assert refusal("GET /", 429, b"busy", header).retry_after_s == retry_after_s


@pytest.mark.parametrize("status", [400, 401, 403, 500, 503])
def test_any_other_refusal_is_told_with_its_number(
    api: ApiServer, tmp_path: Path, status: int
) -> None:
    api.fail(status)
    with pytest.raises(
        ApiError, match=rf"^cannot GET /api/v1/nodes/node-1: {status}: by"
    ) as caught:
        ask(api, tmp_path, lambda c: c.get_node("node-1"))
    assert type(caught.value) is ApiError
    assert ("ClusterRole" in str(caught.value)) is (status in {401, 403})


def test_a_write_whose_answer_is_lost_is_an_error_and_done_once(
    api: ApiServer, tmp_path: Path
) -> None:
    api.fail(0, method="POST", is_after=True)
    with pytest.raises(ApiError, match=r"cannot POST .*/resourceslices: "):
        ask(api, tmp_path, lambda c: c.create_slice(slice_of(1)))
    assert len(api.objects("ResourceSlice")) == 1
    assert len(api.asked("POST")) == 1


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    with api_server() as api:
        pass
    with pytest.raises(ApiError, match=r"cannot GET /api/v1/nodes/node-1: .*refused"):
        ask(api, tmp_path, lambda c: c.get_node("node-1"))


@contextmanager
def silent() -> Iterator[str]:
    """Yield the URL of somebody who takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_that_says_nothing_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    with silent() as url:
        silence = ApiServer(url=url)
        with pytest.raises(ApiError, match="timed out"):
            ask(silence, tmp_path, lambda c: c.get_claim("ns", "c", timeout_s=0.3))


def test_who_ends_does_not_wait_for_a_server_that_says_nothing(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from kata_gpu.publish.kubernetes import client\n"
        "async def main():\n"
        "    async with client.connected(sys.argv[1], agent='kata-gpu/test') as asking:\n"
        "        task = asyncio.create_task(asking.get_node('node-1'))\n"
        "        await asyncio.sleep(0.3)\n"
        "        task.cancel()\n"
        "asyncio.run(main())\n"
    )
    with silent() as url:
        kubeconfig = ApiServer(url=url).kubeconfig(tmp_path / "kubeconfig")
        began_s = time.monotonic()
        subprocess.run((sys.executable, "-c", code, kubeconfig), check=True, timeout=60)
    assert time.monotonic() - began_s < 10


def test_a_request_after_the_end_is_refused(api: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        async with connected(api, tmp_path) as asking:
            pass
        with pytest.raises(ApiError, match="the agent ends"):
            await asking.get_node("node-1")

    asyncio.run(main())


@contextmanager
def saying(reply: bytes) -> Iterator[ApiServer]:
    """Yield a server that answers one request with whatever bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reply_once() -> None:
            channel, _ = listener.accept()
            with channel:
                channel.recv(65536)
                channel.sendall(reply)

        thread = threading.Thread(target=reply_once)
        thread.start()
        yield ApiServer(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "the answer is no JSON: hello"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "the answer is no JSON object"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", "IncompleteRead"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0"),
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
            "302",
        ),
        (b"HTTP/1.1 500 x\r\nContent-Length: 900\r\n\r\n" + b"x" * 900, r"500: x{500}…$"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n" + b"[" * 90000,
            "the answer is nested too deeply",
        ),
        (b"HTTP/1.1 500 x\r\nContent-Length: 90000\r\n\r\n" + b"[" * 90000, r"500: \[{500}…$"),
        (
            b"HTTP/1.1 500 x\r\nContent-Length: 46\r\n\r\n"
            b'{"message": "\\u001b[2J a\\u0007\\u202eb\\ud800c"}',
            r"500: \[2J a b c$",
        ),
    ],
    ids=["text", "list", "half", "ssh", "redirect", "long", "deep", "deep-refusal", "control"],
)
def test_an_answer_that_is_none_is_told(tmp_path: Path, reply: bytes, reason: str) -> None:
    with saying(reply) as pretender, pytest.raises(ApiError, match=reason):
        ask(pretender, tmp_path, lambda c: c.get_node("node-1"))


def test_an_answer_that_comes_too_slowly_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    """Though no two pieces of it are far from each other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            channel, _ = listener.accept()
            with channel, suppress(OSError):
                channel.recv(65536)
                channel.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(100):
                    channel.sendall(b" ")
                    time.sleep(0.05)

        thread = threading.Thread(target=drip)
        thread.start()
        slow = ApiServer(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(ApiError, match="the answer was not whole in time"):
            ask(slow, tmp_path, lambda c: c.get_claim("ns", "c", timeout_s=0.3))
        thread.join()


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"metadata": []},
        {"metadata": {"resourceVersion": 5}},
        {"metadata": {"resourceVersion": "5"}, "items": [{}]},
        {"metadata": {"resourceVersion": "5"}, "items": ["x"]},
        {"metadata": {"resourceVersion": "5"}, "items": 5},
        {
            "metadata": {"resourceVersion": "5"},
            "items": [
                {
                    "metadata": {"name": "a", "uid": "b", "resourceVersion": "5"},
                    "spec": {"pool": {"generation": "x"}},
                }
            ],
        },
    ],
)
def test_a_list_that_is_none_is_told(tmp_path: Path, document: object) -> None:
    body = json.dumps(document).encode()
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with saying(reply) as pretender, pytest.raises(ApiError, match="cannot list ResourceSlices: "):
        ask(pretender, tmp_path, lambda c: c.list_slices(GPU_DRIVER, "node-1"))


def test_slices_of_others_are_not_among_those_listed_whatever_the_server_returns(
    tmp_path: Path,
) -> None:
    metadata = {"name": "a", "uid": "b", "resourceVersion": "5"}
    mine = {"driver": GPU_DRIVER, "nodeName": "node-1", "pool": {"name": "node-1"}}
    specs = (mine, {**mine, "driver": "x"}, {**mine, "nodeName": "x"}, {**mine, "pool": {}})
    items = [{"metadata": metadata, "spec": spec} for spec in specs]
    body = json.dumps({"metadata": {"resourceVersion": "5"}, "items": items}).encode()
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with saying(reply) as pretender:
        listing = ask(pretender, tmp_path, lambda c: c.list_slices(GPU_DRIVER, "node-1"))
    assert [found["spec"] for found in listing.items] == [mine]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"type": "ERROR"}', '{"type": "ADDED", "object": {}}', '"x"', "1"],
)
def test_an_event_of_a_watch_that_is_none_ends_it(tmp_path: Path, line: str) -> None:
    body = line.encode() + b"\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def use(asking: KubernetesClient) -> ApiError | None:
        listener = Listener(asking, "100")
        await until(lambda: listener.watch.is_over)
        assert listener.told == []
        return listener.watch.failure

    with saying(head + b"%x\r\n%s\r\n" % (len(body), body)) as pretender:
        assert str(ask(pretender, tmp_path, use)).startswith("cannot watch ResourceSlices: ")


def test_an_answer_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    sent = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def send_on() -> None:
            channel, _ = listener.accept()
            with channel:
                channel.recv(65536)
                channel.sendall(head)
                try:
                    for _ in range(200):
                        channel.sendall(chunk)
                        sent.append(1)
                except OSError:
                    return

        thread = threading.Thread(target=send_on)
        thread.start()
        endless = ApiServer(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(ApiError, match="the answer has more than 16777216 bytes"):
            ask(endless, tmp_path, lambda c: c.get_node("node-1"))
        thread.join()
    assert len(sent) < 100


# Watches


class Listener:
    """Takes what a watch tells."""

    def __init__(self, asking: KubernetesClient, version: str, timeout_s: int = 300) -> None:
        self.told: list[dict[str, Any]] = []
        self.watch: Watch = asking.watch_slices(
            GPU_DRIVER, "node-1", version=version, timeout_s=timeout_s, wake=self._take
        )

    def _take(self) -> None:
        self.told += self.watch.take()

    @property
    def kinds(self) -> list[str]:
        return [event["type"] for event in self.told]


def test_a_watch_tells_of_the_own_slices_alone(api: ApiServer, tmp_path: Path) -> None:
    async def use(asking: KubernetesClient) -> list[str]:
        listing = await asking.list_slices(GPU_DRIVER, "node-1")
        listener = Listener(asking, listing.version)
        made = await asking.create_slice(slice_of(1))
        other = slices.slices(GPU_DRIVER, NodeIdentity(name="node-2", uid="u"), [], 1)[0]
        await asking.create_slice(other)
        (body,) = slices.plan(GPU_DRIVER, NODE, [with_taint(gpu(1))], [made]).replaces
        await asking.delete_slice(await asking.replace_slice(body))
        await until(lambda: len(listener.told) == 3)
        listener.watch.close()
        return listener.kinds

    assert ask(api, tmp_path, use) == ["ADDED", "MODIFIED", "DELETED"]


def test_a_watch_goes_on_from_where_the_last_one_ended(api: ApiServer, tmp_path: Path) -> None:
    async def use(asking: KubernetesClient) -> tuple[list[str], object]:
        first = Listener(asking, "100", timeout_s=1)
        made = await asking.create_slice(slice_of(1))
        await until(lambda: first.watch.is_over)
        await asking.delete_slice(made)
        second = Listener(asking, made["metadata"]["resourceVersion"])
        await until(lambda: second.told)
        second.watch.close()
        return [*first.kinds, *second.kinds], first.watch.failure

    assert ask(api, tmp_path, use) == (["ADDED", "DELETED"], None)


def test_a_watch_learns_by_bookmarks_how_far_it_is(api: ApiServer, tmp_path: Path) -> None:
    async def use(asking: KubernetesClient) -> str:
        listener = Listener(asking, "100")
        await until(lambda: listener.watch.is_begun)
        api.bookmark()
        await until(lambda: listener.told)
        listener.watch.close()
        assert listener.kinds == ["BOOKMARK"]
        return str(listener.told[0]["object"]["metadata"]["resourceVersion"])

    assert ask(api, tmp_path, use) == str(api.store.version)


def test_a_watch_from_too_long_ago_has_expired(api: ApiServer, tmp_path: Path) -> None:
    api.expire()

    async def use(asking: KubernetesClient) -> object:
        listener = Listener(asking, "100")
        await until(lambda: listener.watch.is_over)
        return listener.watch.failure

    assert isinstance(ask(api, tmp_path, use), ExpiredError)


@pytest.mark.parametrize("status", [410, 429, 500])
def test_a_watch_that_is_refused_says_so(api: ApiServer, tmp_path: Path, status: int) -> None:
    api.fail(status, method="GET", path="resourceslices", retry_after_s=3)

    async def use(asking: KubernetesClient) -> ApiError | None:
        listener = Listener(asking, "100")
        await until(lambda: listener.watch.is_over)
        return listener.watch.failure

    failure = ask(api, tmp_path, use)
    assert failure is not None
    assert isinstance(failure, ExpiredError) is (status == 410)
    assert failure.retry_after_s == 3


def test_a_watch_whose_connection_breaks_says_so(api: ApiServer, tmp_path: Path) -> None:
    async def use(asking: KubernetesClient) -> ApiError | None:
        listener = Listener(asking, "100")
        await until(lambda: listener.watch.is_begun)
        api.reset_watches()
        await until(lambda: listener.watch.is_over)
        return listener.watch.failure

    failure = ask(api, tmp_path, use)
    assert failure is not None
    assert str(failure).startswith("cannot watch ResourceSlices: ")


def test_a_watch_that_is_closed_ends_at_once_though_nothing_is_told(
    api: ApiServer, tmp_path: Path
) -> None:
    async def use(asking: KubernetesClient) -> float:
        listener = Listener(asking, "100")
        await until(lambda: listener.watch.is_begun)
        started = time.monotonic()
        listener.watch.close()
        await until(lambda: listener.watch.is_over)
        return time.monotonic() - started

    assert ask(api, tmp_path, use) < 5


def test_the_end_of_the_client_ends_its_watches(api: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        async with connected(api, tmp_path) as asking:
            listener = Listener(asking, "100")
            await until(lambda: listener.watch.is_begun)
        await until(lambda: listener.watch.is_over)

    asyncio.run(main())
    assert not [t for t in threading.enumerate() if t.name == "watch" and t.is_alive()]


def test_requests_go_on_beside_a_watch(api: ApiServer, tmp_path: Path) -> None:
    async def use(asking: KubernetesClient) -> int:
        listeners = [Listener(asking, "100") for _ in range(8)]
        await until(lambda: all(listener.watch.is_begun for listener in listeners))
        nodes = await asyncio.gather(*(asking.get_node("node-1") for _ in range(20)))
        return len(nodes)

    assert ask(api, tmp_path, use) == 20


# Where the server is


def test_a_kubeconfig_that_is_not_there_is_told_with_what_to_do(tmp_path: Path) -> None:
    async def main() -> None:
        async with client.connected(str(tmp_path / "none"), agent="kata-gpu/test"):
            raise AssertionError("there is no file")

    with pytest.raises(
        HostError, match=r"^cannot reach the API server by .*none: .*kubernetes.api"
    ):
        asyncio.run(main())


@pytest.mark.parametrize("text", ["", "[]", "a: [", "\0", "current-context: x"])
def test_a_kubeconfig_that_is_none_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)

    async def main() -> None:
        async with client.connected(str(path), agent="kata-gpu/test"):
            raise AssertionError("the file is no kubeconfig")

    with pytest.raises(HostError, match=r"^cannot reach the API server by .*kubeconfig: "):
        asyncio.run(main())


def test_without_a_service_account_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    async def main() -> None:
        async with client.connected(None, agent="kata-gpu/test"):
            raise AssertionError("there is no service account")

    with pytest.raises(
        HostError, match="the service account of this pod: Service host/port is not"
    ):
        asyncio.run(main())


def test_a_token_in_a_file_is_read_again_when_the_server_knows_it_no_more(
    api: ApiServer, tmp_path: Path
) -> None:
    kubeconfig, token = api.kubeconfig(tmp_path / "kubeconfig"), tmp_path / "token"
    document = json.loads(kubeconfig.read_text())
    document["users"][0]["user"] = {"tokenFile": str(token)}
    kubeconfig.write_text(json.dumps(document))
    token.write_text("of yesterday")

    async def main() -> list[int]:
        async with client.connected(str(kubeconfig), agent="kata-gpu/test") as asking:
            with pytest.raises(ApiError, match="401"):
                await asking.get_node("node-1")
            token.write_text(TOKEN)
            with pytest.raises(ApiError, match="401"):
                await asking.get_node("node-1")
            await asking.get_node("node-1")
        return [request.status for request in api.requests]

    assert asyncio.run(main()) == [401, 401, 200]


def test_the_agent_says_who_it_is_and_by_which_token(api: ApiServer, tmp_path: Path) -> None:
    kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
    kubeconfig.write_text(kubeconfig.read_text().replace("a-token-for-tests", "another"))

    async def main() -> None:
        async with client.connected(str(kubeconfig), agent="kata-gpu/test") as asking:
            await asking.get_node("node-1")

    with pytest.raises(ApiError, match=r"401: Unauthorized; the agent's ClusterRole"):
        asyncio.run(main())
