"""The client library, imported when somebody needs it: it takes more than half an agent.

Source: kubernetes-client 37.
"""

import importlib
from typing import Any, Final

from kata_gpu.errors import HostError

Failures = tuple[type[Exception], ...]
"""What the library raises when a request of its fails."""

_NO_KUBECONFIG: Final = (OSError, ValueError, TypeError, AttributeError, LookupError)
"""What it raises, beside its own, for a file of another shape, which it does not check."""


def load(
    kubeconfig: str | None, *, in_cluster: bool = False, connections: int = 1
) -> tuple[Any, Failures]:
    """Return an ApiClient that goes by *kubeconfig*, and what it raises.

    None is where kubectl would look, or *in_cluster* the service account of this pod. No request
    is tried again: who asks decides.

    Raises:
        HostError: there is neither, or it cannot be read; the text is the reason alone.
    """
    config = importlib.import_module("kubernetes.config")
    api_client = importlib.import_module("kubernetes.client.api_client")
    settings = importlib.import_module("kubernetes.client.configuration").Configuration()
    no_yaml = importlib.import_module("yaml").YAMLError
    try:
        if kubeconfig is None and in_cluster:
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(kubeconfig, client_configuration=settings, persist_config=False)
    except (config.ConfigException, no_yaml, *_NO_KUBECONFIG) as error:
        raise HostError(str(error)) from error
    settings.retries = False
    settings.keep_alive = True
    settings.connection_pool_maxsize = connections
    return api_client.ApiClient(settings), (
        importlib.import_module("urllib3.exceptions").HTTPError,
        importlib.import_module("kubernetes.client.exceptions").OpenApiException,
        config.ConfigException,
        OSError,
    )
