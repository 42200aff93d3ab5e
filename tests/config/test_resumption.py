import re
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_cdt.checkpoint.exported import replacing
from nemo_cdt.config import Config, Export, Init, Lora, Model, Parallel, Trainer, save
from nemo_cdt.validation import validate
from tests.described import write_described
from tests.runs import settings_of


def earlier(output: Path, **values: object) -> Config:
    """The run that ``output`` holds, to be resumed."""
    config = Config(output=str(output), resume=True, **values)
    save(config, output / "config.yaml")
    (output / "checkpoints/step=1").mkdir(parents=True)
    return config


def test_a_run_resumes_under_another_layout_and_for_more_steps(tmp_path):
    config = earlier(tmp_path / "run")
    validate(
        replace(
            config, parallel=Parallel(tensor=2), trainer=Trainer(devices=2, max_steps=200, val_interval=7, profile=True)
        )
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"trainer": Trainer(seed=7)},
            "trainer.seed=7, but the run in output={} has 42",
        ),
        ({"trainer": Trainer(global_batch_size=16)}, "trainer.global_batch_size=16, but the run in output={} has 8"),
        ({"lora": Lora(rank=8)}, "lora.rank=8, but the run in output={} has 0: set lora.rank=0 to resume it"),
        ({"objective": settings_of(beta=1.0)}, "objective.beta=1.0, but the run in output={} has 5.0"),
    ],
)
def test_a_run_does_not_resume_as_another(tmp_path, changes, expected):
    write_described(tmp_path / "hf", Model())
    (tmp_path / "hf/tokenizer_config.json").write_text("{}")
    config = earlier(tmp_path / "run", init=Init(hf=str(tmp_path / "hf")))
    with pytest.raises(ValueError, match=re.escape(expected.format(config.output))):
        validate(replace(config, **changes))


def test_a_run_that_saved_nothing_starts_anew_as_any_other(tmp_path):
    config = earlier(tmp_path / "run")
    (tmp_path / "run/checkpoints/step=1").rmdir()
    validate(replace(config, trainer=Trainer(seed=7)))


def test_an_export_is_replaced_only_where_the_run_made_it(tmp_path):
    own = earlier(tmp_path / "own", export=Export(hf=str(tmp_path / "hf")))
    other = earlier(tmp_path / "other")
    with replacing(tmp_path / "hf", tmp_path / "own") as new:
        new.mkdir()
        (new / "config.json").touch()

    validate(own)
    with pytest.raises(ValueError, match=r"hf is not empty: .* was exported by another run: set another folder"):
        validate(replace(other, export=own.export))
    (tmp_path / "hf/notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes\.txt in it is not as this run exported it: set another folder"):
        validate(own)
