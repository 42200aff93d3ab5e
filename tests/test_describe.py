"""What a run says of itself before it begins."""

from nemo_cdt.config.compose import compose
from nemo_cdt.describe import describe


def test_a_run_that_ends_before_its_first_validation_says_so():
    short = ["trainer.val_interval=6", "optim.warmup_steps=1"]
    assert "no validation" in describe(compose([*short, "trainer.max_steps=4"]))["Steps"]
    assert "no validation" not in describe(compose([*short, "trainer.max_steps=6"]))["Steps"]
