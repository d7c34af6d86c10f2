"""`autolr theory` and `autolr.insight.theory`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import autolr
from autolr.cli import app
from autolr.errors import AutoLRError

runner = CliRunner()


def test_choices_are_ranked_against_the_first(model_folders):
    found = autolr.theory(model_folders["bert"], targets=("qv", "v", "qkv"), ranks=(2, 4), kinds=("lora", "full"))
    assert [one.cost.targets for one in found.choices] == ["qv", "qv", "qv", "v", "v", "v", "qkv", "qkv", "qkv"]
    ratios = {(c.cost.targets, c.cost.kind, c.cost.rank): c.ratio for c in found.choices}
    assert ratios["qv", "lora", 2] == 1.0 and ratios["qv", "lora", 4] == pytest.approx(2**0.5)
    assert ratios["qkv", "lora", 2] == pytest.approx(1.5**0.5) and ratios["v", "lora", 2] == pytest.approx(0.5**0.5)
    assert found.steps == [] and found.balance is None
    assert "qkv" in found._repr_html_()


def test_the_measured_peak_is_about_what_is_predicted(model_folders):
    found = autolr.theory(model_folders["bert"], ranks=(2, 16), measure=True, batch_size=4, tokens=16, device="cpu")
    first = found.choices[0]
    assert first.peak == first.predicted_peak
    for one in found.choices[1:]:
        # Gradients and activations are not at their highest at the same time, so less may be needed.
        assert one.cost.optimizer_bytes >= first.cost.optimizer_bytes
        extra = one.cost.optimizer_bytes - first.cost.optimizer_bytes
        assert abs(one.peak - one.predicted_peak) <= 0.6 * extra


def test_the_command_tells_the_first_steps(model_folders, reviews):
    arguments = ["theory", model_folders["llama"], "--data", reviews, "--ranks", "2", "--device", "cpu"]
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "balance  W_q and W_v would change the output alike" in done.output and "promises nothing" in done.output
    found = json.loads(runner.invoke(app, [*arguments, "--json"]).stdout)
    assert [step["step"] for step in found["steps"]] == [1, 2, 4, 8, 16, 32] and found["balance"] > 0


def test_wrong_words_are_named(model_folders):
    for option, value in (("--targets", "qx"), ("--kinds", "loha"), ("--ranks", "8,x")):
        done = runner.invoke(app, ["theory", model_folders["bert"], option, value])
        assert done.exit_code != 0 and value in str(done.exception)
    with pytest.raises(AutoLRError, match="rank 0"):
        autolr.theory(model_folders["bert"], ranks=(0,))
    with pytest.raises(AutoLRError, match="at most"):
        autolr.theory(model_folders["bert"], ranks=(4096,))
