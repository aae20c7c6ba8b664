"""H5: train and locked test share no rule, the decoder never saw the locked test, and there are tasks enough to
decide.
"""

import pytest

pytestmark = pytest.mark.frozen_decoder


@pytest.mark.parametrize("name", ["disjoint", "provenance", "enough_tasks"])
def test_the_data_can_carry_a_verdict(arm_run, name):
    found = arm_run.check(name)
    assert found.ok is True, f"{name}: {found.detail}; {found.remedy}"
