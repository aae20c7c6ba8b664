"""H3: the context has the shape, scale and diversity of the contexts the decoder was trained with."""

import pytest

pytestmark = pytest.mark.frozen_decoder


def test_the_context_keeps_the_contract(arm_run):
    found = arm_run.check("context_contract")
    assert found.ok is True, f"{found.detail}; {found.remedy}"


@pytest.mark.parametrize(
    "name",
    [
        "between_task_share",
        pytest.param("std_over_table", marks=pytest.mark.slow),  # a short run ends before its contexts have grown
    ],
)
def test_the_contexts_spread_as_the_decoders_own_do(arm_run, name):
    found = next((f for f in arm_run.evidence.findings if f.name == name), None)
    assert found is not None, f"{name} was not measured; measured were {[f.name for f in arm_run.evidence.findings]}"
    assert found.healthy, f"{name} = {found.value:.3g}, expected {found.low} to {found.high}: {found.detail}"
