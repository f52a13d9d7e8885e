"""Stop services that keep GPUs busy, start those again, and restart one to read a file."""

import logging

from kata_gpu.act import owned_files
from kata_gpu.act.journal import Journal
from kata_gpu.errors import HostError, VerificationError
from kata_gpu.host import Host, services

log = logging.getLogger(__name__)


def stop(host: Host, name: str, journal: Journal) -> None:
    """Note in the ledger that it has to be started again, stop it, verify; idempotent.

    One that does not run is not noted.

    Raises:
        HostError, VerificationError: it runs on, or nobody can say; the ledger names it.
    """
    if not services.read(host, name).is_running:
        return
    journal.update(lambda ledger: ledger.with_service(name))
    services.stop(host, name)
    _require(host, name, running=False)


def start(host: Host, name: str, journal: Journal) -> None:
    """Start what we stopped, verify, and forget it; idempotent.

    One that was uninstalled or masked since is forgotten only.

    Raises:
        HostError, VerificationError: it does not run; the ledger still names it.
    """
    if services.read(host, name).can_start:
        services.start(host, name)
        _require(host, name, running=True)
    else:
        log.warning("service %s is not there any more, so it is not started again", name)
    journal.update(lambda ledger: ledger.without_service(name))


def restart(host: Host, name: str, path: str, journal: Journal) -> None:
    """Restart a service that is to read *path*, and verify; one that does not run is left so.

    If it does not start with our file, it is started without.

    Raises:
        HostError, VerificationError: it did not start with the file, which is removed.
    """
    if not services.read(host, name).is_running:
        return
    try:
        services.restart(host, name)
        _require(host, name, running=True)
    except (HostError, VerificationError) as failure:
        owned_files.remove(host, path, journal)
        services.restart(host, name)
        _require(host, name, running=True)
        raise VerificationError(
            f"cannot have service {name} read {path}, so it runs without: {failure}"
        ) from failure


def _require(host: Host, name: str, *, running: bool) -> None:
    found = services.read(host, name)
    if found.is_running is not running:
        what = "start" if running else "stop"
        raise VerificationError(
            f"cannot {what} service {name}: systemd did it, and says that it is "
            f"{found.active_state}; see journalctl -u {name}"
        )
