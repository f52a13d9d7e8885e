"""Changes to what is prepared: each decides on the claims as they are when it is made.

So it is here that no device gets two owners, whichever agents ask, and in whatever order.
"""

from collections.abc import Callable, Iterable
from types import MappingProxyType

from kata_gpu.errors import HeldError, KataGpuError
from kata_gpu.publish.kubelet.checkpoint import Change
from kata_gpu.publish.kubelet.prepared import Claims, PreparedClaim


def adding(
    prepared: PreparedClaim, elsewhere: Callable[[], Iterable[PreparedClaim]] = tuple
) -> Change:
    """Return what records a claim whose devices are nobody else's.

    *elsewhere* are the claims of the node's other drivers, whose devices may have its units.
    """

    def change(claims: Claims) -> Claims:
        for other in (*claims.values(), *elsewhere()):
            taken = other.units & prepared.units
            if taken and other.claim.uid != prepared.claim.uid:
                raise HeldError(
                    f"cannot prepare {', '.join(sorted(taken))}: it is prepared for claim "
                    f"{other.claim.uid}"
                )
        if prepared.claim.uid in claims:
            raise HeldError("cannot prepare the claim: another agent of this node has begun to")
        return MappingProxyType({**claims, prepared.claim.uid: prepared})

    return change


def completing(prepared: PreparedClaim) -> Change:
    """Return what completes a claim that is still its owner's."""

    def change(claims: Claims) -> Claims:
        begun = claims.get(prepared.claim.uid)
        if begun is None or begun.owner != prepared.owner:
            raise KataGpuError("cannot prepare the claim: another agent took it over meanwhile")
        return MappingProxyType({**claims, prepared.claim.uid: prepared})

    return change


def reopening(prepared: PreparedClaim, begun: PreparedClaim) -> Change:
    """Return what has a claim that is *prepared* be *begun* again, to be undone or done anew."""

    def change(claims: Claims) -> Claims:
        found = claims.get(prepared.claim.uid)
        if found is None:
            return claims
        if found != prepared:
            raise HeldError("cannot unprepare the claim: another agent of this node is at it")
        return MappingProxyType({**claims, prepared.claim.uid: begun})

    return change


def removing(prepared: PreparedClaim) -> Change:
    """Return what removes a claim's record, if it is still the one that is meant."""

    def change(claims: Claims) -> Claims:
        found = claims.get(prepared.claim.uid)
        if found is None or found.owner != prepared.owner:
            return claims
        return MappingProxyType({u: c for u, c in claims.items() if u != prepared.claim.uid})

    return change
