"""An API server over TLS, as a pod reaches it: by its service account and little of the library."""

import ssl
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from kata_gpu.errors import HostError
from kata_gpu.publish.kubernetes import library
from tests.api_server import TOKEN, ApiServer, api_server

_TLS: Final = Path(__file__).parent / "tls"
"""A certificate for 127.0.0.1, who signed it, and who did not; their keys are nowhere.

Who signed it says no key usage, as the CAs of some clusters do not.
"""

_NODE: Final = "/api/v1/nodes/node-1"
_TIMEOUTS_S: Final = (5.0, 5.0)
_HEAVY: Final = frozenset({"pydantic", "requests", "oauthlib", "yaml", "dateutil"})


@pytest.fixture
def api() -> Iterator[ApiServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_TLS / "server.crt", _TLS / "server.key")
    with api_server(tls=context) as api:
        api.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}})
        yield api


@pytest.fixture
def account(tmp_path: Path, api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a service account's folder, and the environment that a pod has."""
    server = urllib.parse.urlsplit(api.url)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(server.hostname))
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "ca.crt").write_text((_TLS / "ca.crt").read_text())
    return tmp_path


def _status(account: Path) -> int:
    server = library.service_account(connections=1, folder=str(account))
    try:
        answer = server.request("GET", _NODE, agent="tests", timeouts_s=_TIMEOUTS_S)
        answer.read()
        return int(answer.status)
    finally:
        server.close()


def test_the_server_is_asked_with_the_accounts_token(account: Path, api: ApiServer) -> None:
    assert _status(account) == 200
    (account / "token").write_text("nobody's")
    assert _status(account) == 401
    assert [request.status for request in api.requests] == [200, 401]


def test_a_token_may_end_with_a_line(account: Path) -> None:
    (account / "token").write_text(f"{TOKEN}\n")
    assert _status(account) == 200


@pytest.mark.parametrize("token", ["se\ncret", "se\x00cret", "sécret"])
def test_a_token_that_is_none_is_told_without_saying_it(
    account: Path, api: ApiServer, token: str
) -> None:
    (account / "token").write_text(token)
    server = library.service_account(connections=1, folder=str(account))
    with pytest.raises(server.failures) as caught:
        server.request("GET", _NODE, agent="tests", timeouts_s=_TIMEOUTS_S)
    assert "cret" not in str(caught.value)
    assert not api.requests


def test_a_server_that_somebody_else_signed_for_is_told_nothing(
    account: Path, api: ApiServer
) -> None:
    (account / "ca.crt").write_text((_TLS / "other.crt").read_text())
    server = library.service_account(connections=1, folder=str(account))
    with pytest.raises(server.failures, match="certificate verify failed"):
        server.request("GET", _NODE, agent="tests", timeouts_s=_TIMEOUTS_S)
    assert not api.requests


def test_a_server_may_be_trusted_without_who_signed_for_it(account: Path) -> None:
    (account / "ca.crt").write_text((_TLS / "server.crt").read_text())
    assert _status(account) == 200


_KUBECONFIG: Final = """
apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
users: [{{name: u, user: {{token: {token}}}}}]
clusters: [{{name: c, cluster: {{server: "{url}", {trust}}}}}]
"""


@pytest.mark.filterwarnings("ignore:Unverified HTTPS")  # which is what it asks for
@pytest.mark.parametrize(
    ("trust", "said"),
    [
        (f"certificate-authority: {_TLS / 'ca.crt'}", "200"),
        (f"certificate-authority: {_TLS / 'other.crt'}", "certificate verify failed"),
        (f"certificate-authority: {_TLS / 'ca.crt'}, tls-server-name: localhost", "200"),
        (f"certificate-authority: {_TLS / 'ca.crt'}, tls-server-name: elsewhere", "mismatch"),
        ("insecure-skip-tls-verify: true", "200"),
        ("tls-server-name: localhost", "certificate verify failed"),
    ],
)
def test_a_kubeconfig_says_whom_to_trust(
    tmp_path: Path, api: ApiServer, trust: str, said: str
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(_KUBECONFIG.format(token=TOKEN, url=api.url, trust=trust))
    server = library.kubeconfig(str(path), connections=1)
    try:
        request = server.request("GET", _NODE, agent="tests", timeouts_s=_TIMEOUTS_S)
        answer = str(request.status)
    except server.failures as error:
        answer = str(error)
    finally:
        server.close()
    assert said in answer


@pytest.mark.parametrize("name", ["token", "ca.crt"])
def test_an_account_that_lacks_a_file_is_refused(account: Path, name: str) -> None:
    (account / name).unlink()
    with pytest.raises(HostError, match="does not exist"):
        library.service_account(connections=1, folder=str(account))


def test_little_of_the_library_is_imported_and_none_is_left_half(account: Path) -> None:
    code = (
        "import sys\n"
        "from kata_gpu.publish.kubernetes import library\n"
        f"library.service_account(connections=1, folder={str(account)!r})\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
        "import kubernetes.config, kubernetes.client\n"
        "print(kubernetes.client.V1Node.__name__, kubernetes.config.load_kube_config.__name__)\n"
    )
    done = subprocess.run(
        (sys.executable, "-c", code), check=True, capture_output=True, text=True, timeout=60
    )
    names, whole = done.stdout.splitlines()
    assert not _HEAVY & set(names.split())
    assert "kubernetes" not in names.split()
    assert "urllib3" in names.split()
    assert whole == "V1Node load_kube_config"


def test_the_library_stays_whole_for_who_has_it(account: Path) -> None:
    import kubernetes.client  # noqa: PLC0415 - before the account is read

    before = {name: module for name, module in sys.modules.items() if "kubernetes" in name}
    library.service_account(connections=1, folder=str(account))
    after = {name: module for name, module in sys.modules.items() if "kubernetes" in name}
    assert after == before
    assert kubernetes.client.V1Node.__name__ == "V1Node"
