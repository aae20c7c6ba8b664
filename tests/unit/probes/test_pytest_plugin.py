"""The plugin as another repository meets it: names, messages, options, and no torch until a test asks for it."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from etrm import pytest_plugin
from etrm.errors import ProbeError
from etrm.pytest_plugin import (
    assert_every_sample_trains,
    assert_frozen,
    assert_gradient_is_true,
    assert_gradient_reaches,
    assert_no_detach,
)

pytestmark = pytest.mark.fast
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self, change=lambda h: h) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head, self.change = nn.Linear(3, 5), nn.Linear(5, 1), change

    def losses(self):
        return self.head(torch.tanh(self.change(self.encoder(X)))).square().squeeze(1)

    def loss(self):
        return self.losses().mean()


KEPT = torch.tensor([[True], [False], [True], [False]])


def some(h):
    return torch.where(KEPT, h, h.detach())


def beside(h):
    return h + h.detach()


def cached(h):
    return torch.where(KEPT, h, torch.ones_like(h))


def test_a_healthy_model_passes_every_assertion():
    model = Model()
    assert_gradient_reaches(model, model.loss, optimisers=[torch.optim.SGD(model.parameters())])
    assert_no_detach(model, model.loss)
    assert_every_sample_trains(model.encoder, model.losses)
    assert_gradient_is_true(model, model.loss, context_module=model.encoder)


def test_each_assertion_fails_with_the_place():
    blocked = Model(lambda h: h.detach())
    with pytest.raises(AssertionError, match=r"(?s)does not reach 2 of the parameters.*h\.detach\(\).*encoder\.bias"):
        assert_gradient_reaches(blocked, blocked.loss)
    weak = Model(beside)
    assert_gradient_reaches(weak, weak.loss)
    with pytest.raises(AssertionError, match=r"(?s)1 undeclared.*return h \+ h\.detach\(\)"):
        assert_no_detach(weak, weak.loss)
    with pytest.raises(AssertionError, match=r"scaled +encoder\.weight: autograd is 0\.5"):
        assert_gradient_is_true(weak, weak.loss)
    partial = Model(some)
    assert_gradient_is_true(Model(cached), Model(cached).loss)
    with pytest.raises(AssertionError, match=r"(?s)2 of 4 samples .*: 1, 3\..*For sample 1:.*h\.detach\(\)"):
        assert_every_sample_trains(partial.encoder, partial.losses)


def test_starved_samples_are_found_where_no_value_was_detached():
    model = Model(cached)
    assert_gradient_reaches(model, model.loss)
    assert_no_detach(model, model.loss)
    with pytest.raises(AssertionError, match=r"(?s)1, 3\..*torch\.where\(KEPT, h, torch\.ones_like\(h\)\)"):
        assert_every_sample_trains(model.encoder, model.losses)


def test_assert_frozen_checks_now_and_after_the_block():
    model = Model()
    with pytest.raises(AssertionError, match="requires_grad: weight"):
        assert_frozen(model.encoder)
    model.encoder.requires_grad_(False)
    with pytest.raises(AssertionError, match="optimiser 0"):
        assert_frozen(model.encoder, optimisers=[torch.optim.SGD(model.parameters())])
    with assert_frozen(model.encoder, golden=lambda: model.encoder(X)):
        model.head.weight.data.add_(1)
    with pytest.raises(AssertionError, match=r"value: bias: .* by at most 1\."), assert_frozen(model.encoder):
        model.encoder.bias.data.add_(1e-6)
    with pytest.raises(ValueError, match="its own"), assert_frozen(model.encoder):
        model.encoder.bias.data.add_(1)
        raise ValueError("its own error is not hidden")


def test_what_cannot_be_observed_is_an_error_not_a_failure():
    with pytest.raises(ProbeError):
        assert_gradient_reaches(Model().requires_grad_(False), lambda: torch.zeros(()))


def test_importing_the_plugin_does_not_import_torch():
    code = "import sys, etrm.pytest_plugin, etrm.probes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


OTHERS_TEST = """
    import torch
    from torch import nn
    from etrm.pytest_plugin import assert_gradient_reaches

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.top = nn.Linear(2, 3), nn.Linear(3, 1)

        def forward(self, x):
            features = self.trunk(x).detach()
            return self.top(features)

    def loss(net):
        return net(torch.ones(4, 2)).square().mean()

    def test_trains():
        net = Net()
        assert_gradient_reaches(net, lambda: loss(net))

    def test_observes(etrm_observe):
        net = Net()
        assert not etrm_observe(net.top, lambda: loss(net)).findings

    def test_audits(etrm_audit):
        net = Net()
        report = etrm_audit(lambda: loss(net), net)
        assert len(report.entries[0].finite) == 1

    def test_keeps(etrm_keep_frozen):
        net = Net().requires_grad_(False)
        etrm_keep_frozen(net.trunk)
        net.trunk.weight.data.zero_()
"""


@pytest.fixture
def elsewhere(pytester):
    """A repository that is not ours, with the plugin loaded once, as its entry point or as -p would."""
    loaded = any(item.value == "etrm.pytest_plugin" for item in entry_points(group="pytest11"))
    extra = () if loaded else ("-p", "etrm.pytest_plugin")
    pytester.makepyfile(OTHERS_TEST)

    def run(*arguments):
        return pytester.runpytest_inprocess(*extra, "-p", "no:cacheprovider", "-p", "no:randomly", *arguments)

    return run


def test_in_another_repository(elsewhere):
    result = elsewhere("--etrm-directions", "1")
    result.assert_outcomes(passed=3, failed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*not frozen (1 differences)*",
            "*value: weight: parameter: 6 of 6 entries differ*",
            "*line 11, in Net.forward*",
            "*features = self.trunk(x).detach()*",
            "*parameters without gradient: trunk.weight, trunk.bias*",
        ],
    )
    assert "pytest_plugin.py" not in result.stdout.str().split("short test summary")[0].split("test_trains")[1]


THEIR_ENCODER = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.out = nn.Linear(2 * spec.seq_len, spec.context_tokens * spec.hidden_size)
        self.shape = (spec.context_tokens, spec.hidden_size)

    def forward(self, demo_inputs, demo_labels, demo_mask):
        shown = demo_mask[..., None].float()
        pairs = (torch.cat((demo_inputs, demo_labels), -1) * shown).sum(1) / shown.sum(1)
        h = self.out(pairs)
        return h.detach().unflatten(1, self.shape)

def make(spec):
    return Mine(spec)
"""
THEIR_VERDICT = """
def test_mine(frozen_decoder_verdict):
    verdict = frozen_decoder_verdict("my_encoder.py:make", bundle="micro", length="short")
    assert verdict.gradient.state == "intact", verdict

def test_no_such_bundle(frozen_decoder_verdict):
    frozen_decoder_verdict("my_encoder.py:make", bundle="macro")
"""


@pytest.mark.thorough
def test_the_verdict_fixture_judges_an_encoder_beside_the_test(pytester):
    inside = pytester.mkdir("tests")
    (inside / "my_encoder.py").write_text(THEIR_ENCODER)
    (inside / "test_mine.py").write_text(THEIR_VERDICT)
    loaded = any(item.value == "etrm.pytest_plugin" for item in entry_points(group="pytest11"))
    extra = () if loaded else ("-p", "etrm.pytest_plugin")
    result = pytester.runpytest_inprocess(*extra, "-p", "no:cacheprovider", "-p", "no:randomly")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ["*AssertionError: B (gradient blocked*", "*BundleError: no embedded config*micro, cal-1*"]
    )


def test_all_options_have_the_prefix():
    names = []
    group = SimpleNamespace(addoption=lambda name, **_: names.append(name))
    pytest_plugin.pytest_addoption(SimpleNamespace(getgroup=lambda *_: group))
    assert names == ["--etrm-show-harmless", "--etrm-directions", "--etrm-tolerance"]


def test_the_documented_example_runs(pytester):
    page = (Path(__file__).parents[3] / "docs" / "use-the-probes.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    pytester.makepyfile(test_tagger=example)
    pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:randomly").assert_outcomes(passed=3)
    shown = page.split("```text\n")[1].split("```")[0]
    line = int(shown.split("line ")[1].split(",")[0])
    assert example.splitlines()[line - 1].strip() == "states = states.detach()"
