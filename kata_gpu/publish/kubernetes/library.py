"""The client library, as far as it is needed: who we are to an API server, and how to reach it.

It is imported when somebody connects. In a pod no more of it is than knows a service account,
renews its token and speaks TLS: the rest, and what that imports, would take an agent's memory
for good (15 of 18 MiB) and most of the time until it speaks to the server.

Source: kubernetes-client 37; urllib3 2.
"""

import importlib
import importlib.util
import json
import ssl
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final
from urllib.parse import urlencode

from kata_gpu import __version__
from kata_gpu.errors import HostError

JSON: Final = "application/json"
USER_AGENT: Final = f"kata-gpu/{__version__}"
SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
_UNAUTHORIZED: Final = 401
_PACKAGES: Final = ("kubernetes", "kubernetes.client", "kubernetes.config", "kubernetes.utils")
"""Those that import, by their ``__init__``, all that is below and beside them."""

_NO_KUBECONFIG: Final = (OSError, ValueError, TypeError, AttributeError, LookupError)
"""What the library raises, beside its own, for a file of another shape, which it does not check."""


class Server:
    """An API server, and who we are to it."""

    def __init__(
        self,
        configuration: Any,
        rest: Any,
        refusals: type[Exception],
        renew: Callable[[], None] | None = None,
    ) -> None:
        self._configuration = configuration
        self._renew = renew
        self._rest = rest
        urllib3 = importlib.import_module("urllib3")
        self._timeout = urllib3.Timeout
        self._refusal = refusals
        self.failures: tuple[type[Exception], ...] = (
            urllib3.exceptions.HTTPError,
            refusals,
            OSError,
            ValueError,
        )
        """What `request` raises."""

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        agent: str,
        timeouts_s: tuple[float, float],
        body: Mapping[str, Any] | None = None,
        kind: str = JSON,
    ) -> Any:
        """Return urllib3's response, its body not yet read. Blocks; is not tried again.

        When the server does not know us any more, who we are is read anew for the next request.

        *timeouts_s* are to connect, and between two pieces of the answer.
        """
        headers = {"Accept": JSON, "User-Agent": agent}
        for found in self._configuration.auth_settings().values():
            headers[found["key"]] = self._credential(found["value"])
        if body is not None:
            headers["Content-Type"] = kind
        connect_s, read_s = timeouts_s
        response = self._rest.pool_manager.request(
            method,
            f"{self._configuration.host}{path}{'?' if query else ''}{urlencode(query or {})}",
            body=None if body is None else json.dumps(body).encode(),
            headers=headers,
            timeout=self._timeout(connect=connect_s, read=read_s),
            preload_content=False,
        )
        if response.status == _UNAUTHORIZED and self._renew is not None:
            self._renew()
        return response

    def _credential(self, text: str | None) -> str:
        """Return it as a header has it, or say what is wrong without saying what it is."""
        trimmed = (text or "").strip()
        if not (trimmed.isascii() and trimmed.isprintable()):
            raise self._refusal("the token has characters that none has")
        return trimmed

    def close(self) -> None:
        """Close what nobody uses."""
        self._rest.close()


def service_account(*, connections: int, folder: str = SERVICE_ACCOUNT) -> Server:
    """Return the server of this pod's cluster, and its service account, which is in *folder*.

    Raises:
        HostError: there is none; the text is the reason alone.
    """
    with _no_more_than_is_asked_for() as client:
        settings = importlib.import_module("kubernetes.client.configuration")
        client.Configuration = settings.Configuration
        loading = importlib.import_module("kubernetes.config.incluster_config")
        rest = importlib.import_module("kubernetes.client.rest")
    configuration = settings.Configuration()
    try:
        loading.InClusterConfigLoader(
            token_filename=f"{folder}/token", cert_filename=f"{folder}/ca.crt"
        ).load_and_set(configuration)
    except (loading.ConfigException, *_NO_KUBECONFIG) as error:
        raise HostError(str(error)) from error
    return _connected(configuration, rest, loading.ConfigException, connections)


def kubeconfig(path: str | None, *, connections: int) -> Server:
    """Return the server of the kubeconfig at *path*; None for where kubectl would look.

    Raises:
        HostError: there is none, or it cannot be read; the text is the reason alone.
    """
    loading = importlib.import_module("kubernetes.config")
    configuration = importlib.import_module("kubernetes.client.configuration").Configuration()
    rest = importlib.import_module("kubernetes.client.rest")
    no_yaml = importlib.import_module("yaml").YAMLError
    refusals = (loading.ConfigException, no_yaml, *_NO_KUBECONFIG)

    def load() -> None:
        loading.load_kube_config(path, client_configuration=configuration, persist_config=False)

    def renew() -> None:
        """Read tokens anew, which are in files, or made by programs; the refusal tells the rest."""
        with suppress(*refusals):
            load()

    try:
        load()
    except refusals as error:
        raise HostError(str(error)) from error
    return _connected(configuration, rest, loading.ConfigException, connections, renew)


def _connected(
    configuration: Any,
    rest: Any,
    refusals: type[Exception],
    connections: int,
    renew: Callable[[], None] | None = None,
) -> Server:
    configuration.retries = False  # who asks decides
    configuration.keep_alive = True
    configuration.connection_pool_maxsize = connections
    client = rest.RESTClientObject(configuration)
    client.pool_manager.connection_pool_kw["ssl_context"] = _verifying(configuration)
    return Server(configuration, client, refusals, renew)


def _verifying(configuration: Any) -> ssl.SSLContext:
    """Return what checks a server as kubectl does: who signed for it, its name, its dates.

    By itself Python, from 3.13 on, checks the form of the CA's certificate too (RFC 5280), and
    refuses those of clusters whose CA lacks an extension: EKS, MicroK8s.
    """
    context: ssl.SSLContext = importlib.import_module("urllib3.util.ssl_").create_urllib3_context(
        cert_reqs=ssl.CERT_REQUIRED if configuration.verify_ssl else ssl.CERT_NONE,
        verify_flags=ssl.VERIFY_X509_PARTIAL_CHAIN,
    )
    if not (configuration.ssl_ca_cert or configuration.ca_cert_data):
        context.load_default_certs()
    return context


@contextmanager
def _no_more_than_is_asked_for() -> Iterator[Any]:
    """Have modules of the library imported without what their packages import.

    The packages are empty ones in the block, and all that was imported is unknown after it:
    who imports the library then gets it whole. Yields the package ``kubernetes.client``.
    """
    spec = importlib.util.find_spec("kubernetes")
    folders = None if spec is None else spec.submodule_search_locations
    if not folders:
        raise HostError("the Python package kubernetes is not installed")
    known = {name: sys.modules.pop(name) for name in tuple(sys.modules) if _is_of_library(name)}
    for name in _PACKAGES:
        package = types.ModuleType(name)
        package.__path__ = ["/".join((folders[0], *name.split(".")[1:]))]
        sys.modules[name] = package
    try:
        yield sys.modules["kubernetes.client"]
    finally:
        for name in tuple(filter(_is_of_library, sys.modules)):
            del sys.modules[name]
        sys.modules.update(known)


def _is_of_library(name: str) -> bool:
    return name.partition(".")[0] == "kubernetes"
