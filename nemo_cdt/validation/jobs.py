"""What a launcher must have, and what no shell, scheduler or manifest would misread."""

import re
from dataclasses import fields
from typing import Any

from nemo_cdt.config.launcher import KUBERNETES, PLACEHOLDER, SLURM, SQUASHED, JobKind, Launcher, LauncherName, keys_of

CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""And half a surrogate, which no terminal and no file takes."""
SECRET = re.compile(r"(?i)(token(?!iz)|secret|passw|credential|api_?key|access_?key|_pw$)")
SECRET_VALUE = re.compile(
    r"\b(hf_|sk-|gh[opu]_|github_pat_|glpat-|nvapi-|AKIA)[A-Za-z0-9_-]{16,}|://[^\s/:@]+:[^\s/@]+@|\b[Ww]andb login \w"
)
ASSIGNED = re.compile(r"""(?<![\w$])(\w+)=["']?[^\s"'$`;]""")
"""In shell: a variable that gets a value which is written there."""
WORD = r"[\w.,:=+@/|&*!()\[\]-]*"
VARIABLE = r"[A-Za-z_]\w*"
NAME = r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.,=+/-]*"
K8S_NAME = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"
PATTERNS = {
    "workdir": r"/[\w.,=+/@-]*",
    "image": r"[\w.:=+@/#-]*",
    # what ssh or srun would take for an option is none: -oProxyCommand=...
    "host": r"[\w\[:][\w.:%\]-]*",
    "user": r"[\w.][\w.@+-]*",
    "identity": r"[^-].*",
    "python": r"[\w.~/][\w.,:=+@/-]*",
    "time": r"\d+(-\d+)?(:\d+){0,2}",
    "array": r"\d+([-,:]\d+)*(%\d+)?",
    "mem": r"\d+[KMGT]?",
    "namespace": K8S_NAME,
    "runtime": K8S_NAME,
    "queue": K8S_NAME,
    "priority": K8S_NAME,
    "service_account": K8S_NAME,
    **dict.fromkeys(("cpu", "memory", "shared_memory"), r"\d+(\.\d+)?([kKMGTP]i?|m)?"),
}
EXAMPLES = {
    "identity": "~/.ssh/id_ed25519",
    "time": "4:00:00, or 1-12:00:00 with days",
    "array": "1-4, or 1-9:2%2",
    "mem": "200G",
    "cpu": "32",
    "memory": "200Gi",
    "shared_memory": "64Gi",
}
FREE = {"site", "identity", "setup", "env", "tolerations", "node_selector", "context"}
"""Values that are quoted, or are shell by intent; what they may not hold is a line break."""
REQUIRED = {SLURM: ("account", "partition"), KUBERNETES: ("namespace", "image", "workdir", "volumes")}


def check_launcher(launcher: Launcher, name: str, output: str, where: str) -> None:
    """Raise ValueError for a launcher that cannot be. ``where`` is the file that could give what is missing."""
    _check_keys(launcher)
    if launcher.name is LauncherName.local:
        return
    shown = launcher.dryrun and launcher.name is SLURM  # with a placeholder
    for key in missing_keys(launcher):
        if not shown:
            raise ValueError(f"launcher.{key} is missing: set {key} in {where}, or launcher.{key} here")
    if launcher.elsewhere and not launcher.workdir:
        raise ValueError(f"launcher.workdir is missing: set workdir in {where}, or launcher.workdir here")
    _check_values(launcher)
    for key, value in (("name", name), ("output", output)):
        if not re.fullmatch(NAME if key == "name" or launcher.elsewhere else rf"/?{NAME}", value):
            raise ValueError(
                f"{key}={value!r} with launcher={launcher.name}: set it to letters, digits and . _ - = + , /"
                + (", a path in launcher.workdir" if key == "output" and launcher.elsewhere else "")
            )


def missing_keys(launcher: Launcher) -> list[str]:
    """The keys that a job cannot do without, and does not have."""
    return [key for key in REQUIRED.get(launcher.name, ()) if getattr(launcher, key) in (None, {})]


def _check_keys(launcher: Launcher) -> None:
    own, plain = keys_of(launcher.name), Launcher()
    for key in fields(Launcher):
        value = getattr(launcher, key.name)
        if key.name not in own and value != getattr(plain, key.name):
            raise ValueError(f"launcher.{key.name}={value} has no effect with launcher={launcher.name}: remove it")


def _check_values(launcher: Launcher) -> None:
    for key in fields(Launcher):
        for value in _strings(getattr(launcher, key.name)):
            if PLACEHOLDER in value:
                raise ValueError(f"launcher.{key.name}={value} is the placeholder of a dry run: set your own value")
            if CONTROL.search(value):
                raise ValueError(f"launcher.{key.name}={value!r} has a line break or a control character: remove it")
            if (key.name in PATTERNS or key.name not in FREE) and not re.fullmatch(PATTERNS.get(key.name, WORD), value):
                raise ValueError(f"launcher.{key.name}={value!r} is no value for it: {_expected(key.name)}")
    for variable in (*launcher.env, *launcher.secrets):
        if not re.fullmatch(VARIABLE, variable):
            raise ValueError(f"{variable!r} is no name of an environment variable: set it to letters, digits and _")
    _check_secrets(launcher)
    for variable, reference in launcher.secrets.items():
        if not re.fullmatch(rf"{K8S_NAME}/[\w.-]+", reference):
            raise ValueError(f"launcher.secrets.{variable} is no reference: set it to SECRET/KEY, never to the value")
    for claim, path in launcher.volumes.items():
        if not re.fullmatch(K8S_NAME, claim) or not path.startswith("/"):
            raise ValueError(f"launcher.volumes.{claim}={path}: set it to CLAIM: /PATH")
    if launcher.kind is JobKind.trainjob and launcher.priority:
        raise ValueError(
            f"launcher.priority={launcher.priority} has no place in a TrainJob: set launcher.priority=null, "
            f"and the priority in the training runtime {launcher.runtime}"
        )
    image = launcher.image or ""
    if launcher.name is KUBERNETES and (image.startswith("/") or image.endswith(SQUASHED)):
        raise ValueError(f"launcher.image={launcher.image} is a file: set it to an image of a registry")
    if launcher.name is SLURM:
        _check_slurm(launcher)


def _check_secrets(launcher: Launcher) -> None:
    """None may be in what is written into a script or a manifest."""
    instead = (
        "set launcher.secrets"
        if launcher.name is KUBERNETES
        else "set it in your shell, or let launcher.setup source a file that only you can read"
    )
    for variable, value in launcher.env.items():
        if SECRET.search(variable) or SECRET_VALUE.search(value):
            raise ValueError(f"launcher.env.{variable} would be written into the job: {instead}")
    for line in launcher.setup:
        named = [variable for variable in ASSIGNED.findall(line) if SECRET.search(variable)]
        if named or SECRET_VALUE.search(line):
            what = named[0] if named else "a token"
            raise ValueError(f"launcher.setup would write {what} into the job: {instead}")


def _check_slurm(launcher: Launcher) -> None:
    if launcher.array and launcher.chain > 1:
        raise ValueError(f"launcher.array={launcher.array} with launcher.chain={launcher.chain}: set chain=1")
    backwards = [f"{a}-{b}" for a, b in re.findall(r"(\d+)-(\d+)", launcher.array or "") if int(b) < int(a)]
    if backwards or (launcher.array or "").endswith("%0"):
        raise ValueError(f"launcher.array={launcher.array} has no task: set it to something like {EXAMPLES['array']}")
    for mount in launcher.mounts:
        if not all(path.startswith("/") for path in mount.split(":")[:2]):
            raise ValueError(f"launcher.mounts={mount}: set it to /FROM:/TO")
    longest = 65535 if launcher.time is None else min(65535, seconds(launcher.time) - 1)  # Slurm's own limit
    if launcher.grace > longest:
        of = "" if launcher.time is None else f" of launcher.time={launcher.time}"
        raise ValueError(
            f"launcher.grace={launcher.grace} seconds{of}: set it to {longest} or less, to leave time to train"
        )


def seconds(time: str) -> int:
    """Of Slurm's M, M:S, H:M:S, D-H, D-H:M and D-H:M:S."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = [3600, 60, 1] if dash or len(parts) == 3 else [60, 1]
    return int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))


def _expected(key: str) -> str:
    if key in EXAMPLES:
        return f"set it to something like {EXAMPLES[key]}"
    return (
        f"it must match {PATTERNS[key]}" if key in PATTERNS else "leave out spaces, quotes and the shell's characters"
    )


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.items() for part in item for text in _strings(part)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return [str(value)] if isinstance(value, str) else []
