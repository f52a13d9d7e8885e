"""What users and admins ask of a GPU is read strictly, and the admin has the last word."""

from collections.abc import Sequence
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_gpu.errors import KataGpuError
from kata_gpu.model.kubernetes import GPU_DRIVER
from kata_gpu.publish.kubelet import claim_config
from kata_gpu.publish.kubelet.claim_config import (
    Confidential,
    KataGpuConfig,
    OpaqueConfig,
    Source,
)
from tests.kubelet.claims import opaque

DEFAULT: Final = KataGpuConfig()


def read(*entries: Any) -> tuple[OpaqueConfig, ...]:
    return claim_config.opaque_configs(entries, driver=GPU_DRIVER)


def refused(*entries: Any) -> str:
    with pytest.raises(KataGpuError) as caught:
        read(*entries)
    return str(caught.value)


# Decoding


def test_all_fields_are_read() -> None:
    (found,) = read(opaque({"confidential": "required", "requireReset": True}, requests=["gpu"]))
    assert found == OpaqueConfig(
        source=Source.CLAIM,
        requests=("gpu",),
        config=KataGpuConfig(confidential=Confidential.REQUIRED, require_reset=True),
    )


def test_every_field_may_be_left_out() -> None:
    assert read(opaque({}))[0].config == DEFAULT


def test_another_drivers_parameters_are_not_looked_at() -> None:
    assert read(opaque({"x": 1}, driver="nic.example.com")) == ()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"requireRest": True}, "parameters.requireRest: there is no such field"),
        ({"require_reset": True}, "parameters.require_reset: there is no such field"),
        ({"requireReset": "true"}, "parameters.requireReset: input should be a valid boolean"),
        ({"requireReset": 1}, "parameters.requireReset: input should be a valid boolean"),
        ({"confidential": "on"}, "parameters.confidential: input should be 'any', 'required'"),
        ({"confidential": None}, "parameters.confidential: input should be"),
        ({"confidential": "off"}, "confidential: off is for a DeviceClass to say"),
        ({"kind": "GpuConfig"}, "parameters.kind: input should be 'KataGpuConfig'"),
        ({"apiVersion": "v1"}, "parameters.apiVersion: input should be"),
        ({"x" * 11000: 1}, "bytes, and 10240 are the limit"),
    ],
)
def test_what_is_not_as_it_must_be_is_refused_with_its_place(
    parameters: dict[str, Any], said: str
) -> None:
    text = refused(opaque({}), opaque(parameters))
    assert said in text
    assert text.startswith("cannot use config[1].opaque.parameters")
    assert len(text) < 500


@pytest.mark.parametrize("missing", ["kind", "apiVersion"])
def test_parameters_without_their_kind_or_version_are_refused(missing: str) -> None:
    entry = opaque({})
    del entry["opaque"]["parameters"][missing]
    assert f"parameters.{missing}: field required" in refused(entry)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"source": "FromClaim", "requests": []}, "config[0] of the claim: it has no opaque"),
        ("text", "it has no opaque parameters"),
        (opaque({}, source="FromPod"), "its source is 'FromPod', not FromClass or FromClaim"),
        ({**opaque({}), "requests": "gpu"}, "its requests are no list of names"),
        ({**opaque({}), "requests": [1]}, "its requests are no list of names"),
        ({**opaque({}), "opaque": {"driver": GPU_DRIVER}}, "parameters: it is no object"),
        (
            {**opaque({}), "opaque": {"driver": GPU_DRIVER, "parameters": {"a": {1, 2}}}},
            "it is no JSON",
        ),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(entry: Any, said: str) -> None:
    assert said in refused(entry)


def test_more_entries_than_there_can_be_are_refused() -> None:
    assert "more than 64 configurations" in refused(*[opaque({})] * 65)


def test_parameters_nested_without_end_are_refused() -> None:
    nested: dict[str, Any] = {}
    for _ in range(100_000):
        nested = {"a": nested}
    entry = opaque({})
    entry["opaque"]["parameters"]["x"] = nested
    assert "it is no JSON" in refused(entry)
    while nested:  # the interpreter would take it apart recursively
        nested = nested.pop("a", {})


def test_off_is_for_a_class_to_say() -> None:
    (found,) = read(opaque({"confidential": "off"}, source="FromClass"))
    assert found.config.confidential is Confidential.OFF


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from(["FromClass", "FromClaim", "", None]))
def test_no_parameters_do_anything_but_be_read_or_refused(parameters: Any, source: Any) -> None:
    entry = {"source": source, "opaque": {"driver": GPU_DRIVER, "parameters": parameters}}
    try:
        read(entry, entry)
    except KataGpuError as error:
        assert str(error).startswith("cannot use")  # noqa: PT017 - both ways are right


# Precedence


def entry(source: Source, requests: Sequence[str], config: KataGpuConfig) -> OpaqueConfig:
    return OpaqueConfig(source=source, requests=tuple(requests), config=config)


REQUIRED: Final = KataGpuConfig(confidential=Confidential.REQUIRED)
OFF: Final = KataGpuConfig(confidential=Confidential.OFF)
RESET: Final = KataGpuConfig(require_reset=True)


def test_without_an_entry_nothing_is_asked_for() -> None:
    assert claim_config.effective((), "gpu") == DEFAULT


def test_of_each_source_the_last_entry_for_a_request_counts() -> None:
    entries = (
        entry(Source.CLAIM, (), REQUIRED),
        entry(Source.CLAIM, ("gpu",), RESET),
        entry(Source.CLAIM, ("other",), REQUIRED),
    )
    assert claim_config.effective(entries, "gpu") == RESET
    assert claim_config.effective(entries, "third") == REQUIRED


def test_a_main_request_stands_for_its_subrequests_and_not_the_other_way_round() -> None:
    main, sub = entry(Source.CLAIM, ("gpu",), RESET), entry(Source.CLAIM, ("gpu/big",), REQUIRED)
    assert claim_config.effective((main, sub), "gpu/big") == REQUIRED
    assert claim_config.effective((main, sub), "gpu/small") == RESET
    assert claim_config.effective((main, sub), "gpu") == RESET
    assert claim_config.effective((sub,), "gpu") == DEFAULT


def test_a_claim_adds_to_what_its_class_demands_and_takes_nothing_from_it() -> None:
    of_class = entry(Source.CLASS, (), KataGpuConfig(confidential=Confidential.REQUIRED))
    of_claim = entry(Source.CLAIM, (), RESET)
    assert claim_config.effective((of_class, of_claim), "gpu") == KataGpuConfig(
        confidential=Confidential.REQUIRED, require_reset=True
    )


def test_a_class_and_a_claim_that_contradict_each_other_are_refused() -> None:
    entries = (entry(Source.CLASS, (), OFF), entry(Source.CLAIM, (), REQUIRED))
    with pytest.raises(KataGpuError, match="off, as the class says, and required"):
        claim_config.effective(entries, "gpu")


CONFIGS = st.builds(
    KataGpuConfig,
    confidential=st.sampled_from([Confidential.ANY, Confidential.REQUIRED]),
    require_reset=st.booleans(),
)
NAMES = st.sampled_from(["a", "b", "a/x", "a/y", "b/x"])
ENTRIES = st.lists(
    st.builds(
        OpaqueConfig,
        source=st.sampled_from(Source),
        requests=st.lists(NAMES, max_size=3).map(tuple),
        config=CONFIGS,
    ),
    max_size=8,
)


@given(ENTRIES, NAMES)
def test_what_holds_is_what_the_last_of_each_source_asks_for(
    entries: list[OpaqueConfig], request: str
) -> None:
    def last(source: Source) -> KataGpuConfig:
        found = DEFAULT
        for one in entries:
            names = {request, request.split("/", maxsplit=1)[0]}
            if one.source is source and (not one.requests or names & set(one.requests)):
                found = one.config
        return found

    of_class, of_claim = last(Source.CLASS), last(Source.CLAIM)
    found = claim_config.effective(entries, request)
    assert found.require_reset == (of_class.require_reset or of_claim.require_reset)
    is_required = Confidential.REQUIRED in {of_class.confidential, of_claim.confidential}
    assert found.confidential == (Confidential.REQUIRED if is_required else Confidential.ANY)


@given(ENTRIES, NAMES, CONFIGS)
def test_no_claim_weakens_what_a_class_demands(
    entries: list[OpaqueConfig], request: str, wish: KataGpuConfig
) -> None:
    of_class = [one for one in entries if one.source is Source.CLASS]
    before = claim_config.effective(of_class, request)
    after = claim_config.effective([*of_class, entry(Source.CLAIM, (), wish)], request)
    assert claim_config.both(before, after) == after


# What is held against a device


@pytest.mark.parametrize(
    ("config", "attributes", "objection"),
    [
        (DEFAULT, {}, None),
        (REQUIRED, {"confidential": True}, None),
        (REQUIRED, {"confidential": False}, "not ready for confidential VMs"),
        (REQUIRED, {"confidential": "true"}, "not ready for confidential VMs"),
        (REQUIRED, {}, "not ready for confidential VMs"),
        (OFF, {"confidential": True}, "in confidential mode"),
        (OFF, {}, None),
        (RESET, {"resetMethod": "flr"}, None),
        (RESET, {"resetMethod": ""}, "no way to be reset"),
        (RESET, {}, "no way to be reset"),
    ],
)
def test_a_device_is_held_against_what_is_asked_for(
    config: KataGpuConfig, attributes: dict[str, Any], objection: str | None
) -> None:
    found = config.objection(attributes)
    assert found is None if objection is None else objection in str(found)
