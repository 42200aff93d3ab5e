"""What a site's file gives, what a launcher lacks, and what none of them takes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_cdt.config import Config
from nemo_cdt.config.launcher import Launcher, LauncherName
from nemo_cdt.launch.site import with_site
from nemo_cdt.validation import validate
from nemo_cdt.validation.jobs import seconds
from tests.launch.composed import SITE, run

SLURM = ("launcher=slurm", "launcher.host=login", "launcher.workdir=/lustre/me")


def site(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    return file


def test_the_command_line_is_before_the_site_and_mappings_are_joined():
    launcher = run(*SLURM, "launcher.partition=debug", "+launcher.env.MINE=1").launcher

    assert (launcher.account, launcher.partition) == ("science", "debug")
    assert launcher.env == {"DATA": "a b; $HOME", "MINE": "1"}


def test_a_value_may_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_ACCOUNT", "mine")
    file = site(tmp_path, "slurm: {account: '${oc.env:MY_ACCOUNT}', partition: gpu}")

    assert run(*SLURM, site=file).launcher.account == "mine"


def test_the_file_is_named_by_the_environment_or_is_the_users_own(tmp_path, monkeypatch):
    config = Config(launcher=Launcher(name=LauncherName.slurm))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NEMO_CDT_SITE", raising=False)
    assert with_site(config).launcher.account is None

    (tmp_path / ".config/nemo_cdt").mkdir(parents=True)
    (tmp_path / ".config/nemo_cdt/site.yaml").write_text("slurm: {account: home}")
    assert with_site(config).launcher.account == "home"

    monkeypatch.setenv("NEMO_CDT_SITE", str(SITE))
    assert with_site(config).launcher.account == "science"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("slurm: {partition: gpu}", "launcher.account is missing: set account in {file}, or launcher.account here"),
        ("slurm: {acount: a}", "{file}: slurm.acount is no key of launcher=slurm: did you mean account?"),
        ("slurm: {dryrun: true}", "{file}: slurm.dryrun is no key of launcher=slurm"),
        ("slurm: {account: a, mounts: 3}", "{file}: mounts: "),
        ("slurn: {account: a}", "{file}: slurn is no section: there are slurm, kubernetes"),
        ("slurm: [account]", "{file} must have a section slurm: with keys of launcher=slurm"),
        ("slurm: {account: '${oc.env:NOT_SET_ANYWHERE}'}", "{file}: KeyError raised while resolving interpolation"),
        ("slurm:\n  partition: [debug\n", "{file}, line 3: did not find expected ',' or ']'"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_it(tmp_path, text, expected):
    file = site(tmp_path, text)

    with pytest.raises(ValueError, match=re.escape(expected.format(file=file))) as raised:
        run(*SLURM, site=file)

    assert "\n" not in str(raised.value)


def test_a_file_that_is_named_and_missing_is_no_silent_default(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.yaml, the file of your site, does not exist"):
        run(*SLURM, site=tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("key", ["account=a", "dryrun=true", "image=i", "chain=2", "namespace=n"])
def test_a_key_without_effect_is_refused(key):
    name, _, value = key.partition("=")
    launcher = Launcher(**{name: {"true": True, "2": 2}.get(value, value)})

    with pytest.raises(ValueError, match=f"launcher.{name}=.* has no effect with launcher=local: remove it"):
        validate(Config(launcher=launcher))


def test_a_key_of_another_launcher_is_refused():
    with pytest.raises(ValueError, match=r"launcher\.queue=q has no effect with launcher=slurm: remove it"):
        run(*SLURM, "launcher.queue=q")


EVIL = ("x; rm -rf ~", "x\nrm -rf ~", "$(id)", "`id`", "a b", "a/../../etc", "-rf", "", "%x", "a'b", 'a"b', "é\u2028")


@pytest.mark.parametrize("launcher", ["slurm", "kubernetes"])
def test_a_name_that_a_shell_or_a_scheduler_would_misread_is_refused(launcher):
    config = run(f"launcher={launcher}", *(SLURM[1:] if launcher == "slurm" else ()))

    for key in ("name", "output"):
        for value in EVIL:
            refused(replace(config, **{key: value}), rf"^{key}")


@pytest.mark.parametrize("key", ["account", "partition", "qos", "image", "python", "workdir", "time", "user", "host"])
def test_a_value_that_is_no_word_is_refused(key, slurm):
    for value in ("x\n#SBATCH --wrap=id", "a b", "$(id)", "`id`", "a;id", "a'b", 'a"b', "a\\b"):
        refused(replace(slurm, launcher=replace(slurm.launcher, **{key: value})), rf"^launcher.{key}=")


@pytest.fixture(scope="module")
def slurm() -> Config:
    return run(*SLURM)


def refused(config: Config, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as raised:
        validate(config)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["+launcher.env.WANDB_API_KEY=abc"],
            "launcher.env.WANDB_API_KEY would be written into the job: set launcher.se",
        ),
        (["+launcher.env.a-b=c"], "'a-b' is no name of an environment variable"),
        (["+launcher.secrets.TOKEN=hf_123"], "launcher.secrets.TOKEN is no reference: set it to SECRET/KEY"),
        (["+launcher.volumes.data=relative"], "launcher.volumes.data=relative: set it to CLAIM: /PATH"),
        (["launcher.kind=trainjob", "launcher.priority=high"], "launcher.priority=high has no place in a TrainJob"),
        (["+launcher.env.MINE=hf_abcdefghijklmnopqrstuv"], "launcher.env.MINE would be written into the job"),
        (
            ["launcher.queue=SET_LAUNCHER_QUEUE"],
            "launcher.queue=SET_LAUNCHER_QUEUE is the placeholder of a dry run",
        ),
        (["launcher.memory=foo"], "launcher.memory='foo' is no value for it: set it to something like 200Gi"),
        (["launcher.cpu=lots"], "launcher.cpu='lots' is no value for it: set it to something like 32"),
        (
            ["launcher.image=/lustre/x.sqsh"],
            "launcher.image=/lustre/x.sqsh is a file: set it to an image of a registry",
        ),
        (["launcher.namespace=A_b"], "launcher.namespace='A_b' is no value for it"),
        (["output=/elsewhere"], "output='/elsewhere' with launcher=kubernetes"),
    ],
)
def test_what_kubernetes_or_a_secret_does_not_allow_is_refused(overrides, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        run("launcher=kubernetes", *overrides)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("export HF_TOKEN=hf_x", "HF_TOKEN"),
        ("export A=1 MY_PASSWORD='x y'", "MY_PASSWORD"),
        ("export MY_PW=hunter2", "MY_PW"),
        ("export http_proxy=http://me:hunter2@proxy:3128", "a token"),
        ("wandb login 0123456789abcdef", "a token"),
        ("huggingface-cli login --token hf_abcdefghijklmnopqrstuv", "a token"),
    ],
)
def test_a_secret_in_a_line_of_setup_is_refused(line, name, slurm):
    refused(
        replace(slurm, launcher=replace(slurm.launcher, setup=[line])),
        f"launcher.setup would write {name} into the job: set it in your shell, or let launcher.setup source a file",
    )


@pytest.mark.parametrize(
    "line", ["source ~/.secrets", "export HF_TOKEN=$(cat ~/.token)", 'export HF_TOKEN="$T"', "export TOKENIZERS_X=0"]
)
def test_a_line_of_setup_that_fetches_a_secret_is_not(line, slurm):
    validate(replace(slurm, launcher=replace(slurm.launcher, setup=[line], dryrun=True)))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("launcher.array=4-1", "launcher.array=4-1 has no task: set it to something like 1-4"),
        ("launcher.array=1-4%0", "launcher.array=1-4%0 has no task"),
        ("launcher.mounts=[data:/data]", "launcher.mounts=data:/data: set it to /FROM:/TO"),
        ("launcher.mounts=[data]", "launcher.mounts=data: set it to /FROM:/TO"),
        ("launcher.grace=70000", "launcher.grace=70000 seconds: set it to 65535 or less"),
        ("launcher.time=2", "launcher.grace=120 seconds of launcher.time=2: set it to 119 or less"),
    ],
)
def test_what_slurm_would_refuse_or_end_at_once_is_refused(override, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        run(*SLURM, override)


@pytest.mark.parametrize(
    "override",
    ["launcher.array=1-4", "launcher.array='1,3,5-7:2%2'", "launcher.mounts=[/a:/b:ro,/c]", "launcher.time=3"],
)
def test_what_slurm_takes_is_not(override):
    run(*SLURM, override)


@pytest.mark.parametrize(
    ("time", "expected"),
    [("2", 120), ("2:30", 150), ("1:00:00", 3600), ("1-1", 90000), ("1-1:30", 91800), ("1-01:30:10", 91810)],
)
def test_a_time_limit_means_what_slurm_makes_of_it(time, expected):
    assert seconds(time) == expected
