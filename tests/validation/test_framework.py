"""Which framework drives Megatron, and what the second one has not."""

import pytest

from nemo_cdt import frameworks
from nemo_cdt.config import Config, Framework
from nemo_cdt.config.compose import compose
from nemo_cdt.validation import check_checkpoints, validate
from nemo_cdt.validation.framework import check_framework


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("there", "chosen"),
    [(["nemo"], "nemo"), (["megatron.bridge"], "bridge"), (["nemo", "megatron.bridge"], "nemo"), ([], "nemo")],
)
def test_auto_is_what_is_installed(there, chosen, monkeypatch):
    monkeypatch.setattr(frameworks, "is_installed", lambda framework: frameworks.PACKAGES[framework] in there)
    assert frameworks.framework_of(Config()) == chosen
    assert frameworks.framework_of(Config(framework=Framework.bridge)) is Framework.bridge


def test_a_package_that_is_not_there_is_not_installed():
    assert frameworks.is_installed(Framework.nemo) != frameworks.is_installed(Framework.bridge)


def test_a_run_of_both_is_accepted():
    for framework in Framework:
        validate(compose([f"framework={framework}"]))


@pytest.mark.parametrize(
    ("override", "way_out"),
    [
        ("lora.rank=8", "set lora.rank=0, or framework=nemo"),
        ("longppl.evaluator=x", "set longppl.evaluator=null, or framework=nemo"),
        ("trainer.profile=true", "set trainer.profile=false, or framework=nemo"),
        ("trainer.fp8=both", "set trainer.fp8=none, or framework=nemo"),
        ("optim.offload=0.5", "set optim.offload=0, or framework=nemo"),
        ("trainer.offload_activations=1", "set trainer.offload_activations=0, or framework=nemo"),
        ("logger=[tensorboard,mlflow]", "logger=[mlflow] with framework=bridge"),
        ("data=pretrain", "set data=prepared"),
        ("objective=logo", "objective logo with framework=bridge"),
    ],
)
def test_what_bridge_has_not_is_refused(override, way_out):
    with pytest.raises(ValueError, match=r"framework=bridge") as error:
        check_framework(compose(["framework=bridge", override]))
    assert way_out in str(error.value)


def test_checkpoints_of_the_other_framework_are_not_resumed(tmp_path):
    (tmp_path / "run/checkpoints/iter_0000002").mkdir(parents=True)
    config = compose(["framework=nemo", "output=run"])
    with pytest.raises(ValueError, match="resume it with framework=bridge, or begin another run"):
        check_checkpoints(config)
    check_checkpoints(compose(["framework=bridge", "output=run"]))
