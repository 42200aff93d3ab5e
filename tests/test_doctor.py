from pathlib import Path

import pytest
from packaging.version import Version

from nemo_cdt import doctor

FITS = {
    "nemo-toolkit": "2.7.3",
    "megatron-core": "0.15.3",
    "nvidia-modelopt": "0.37.0",
    "nemo-run": "0.11.1",
    "leptonai": "0.27.3",
    "numpy": "1.26.4",
    "pyarrow": "21.0.0",
    "psutil": "7.2.2",
    "nvidia-resiliency-ext": "0.4.1",
    "torch": "2.13.0",
}


def install(monkeypatch, folder: Path, **versions: str | None) -> None:
    """A site-packages of its own: the metadata that an installation of ``FITS`` leaves, with ``versions`` changed."""
    for name, version in (FITS | {name.replace("_", "-"): version for name, version in versions.items()}).items():
        if version is not None:
            metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
            metadata.mkdir()
            (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.setattr("sys.path", [str(folder)])


@pytest.mark.parametrize(
    ("check", "versions", "status", "said"),
    [
        (doctor.nemo_and_megatron, {}, "ok", "2.7.3"),
        (doctor.nemo_and_megatron, {"megatron_core": "0.16.1"}, "fail", "NVIDIA-NeMo/Speech#15458"),
        (doctor.nemo_and_megatron, {"megatron_core": "0.16.0rc0"}, "fail", "NVIDIA-NeMo/Speech#15458"),
        (doctor.nemo_and_megatron, {"nemo_toolkit": "3.0.0"}, "fail", "no nemo.collections.llm"),
        (doctor.nemo_and_megatron, {"nemo_toolkit": "2.6.0"}, "warn", "untested"),
        (doctor.nemo_and_megatron, {"nemo_toolkit": None}, "fail", "both are needed"),
        (doctor.modelopt, {}, "ok", "0.37.0"),
        (doctor.modelopt, {"nvidia_modelopt": None}, "fail", "hides"),
        (doctor.nemo_run, {}, "ok", "0.27.3"),
        (doctor.nemo_run, {"leptonai": "0.28.0"}, "fail", "cannot be imported"),
        (doctor.nemo_run, {"nemo_run": None}, "fail", "several processes"),
        (doctor.numpy_and_pyarrow, {}, "ok", "1.26.4"),
        (doctor.numpy_and_pyarrow, {"pyarrow": "26.0.1"}, "fail", "needs numpy 2"),
        (doctor.numpy_and_pyarrow, {"numpy": "2.4.6", "pyarrow": "26.0.1"}, "warn", "asks for numpy 1"),
        (doctor.numpy_and_pyarrow, {"numpy": None}, "fail", "no numpy"),
        (doctor.psutil, {"psutil": None}, "fail", "hangs"),
        (doctor.resiliency, {}, "ok", "0.4.1"),
        (doctor.resiliency, {"nvidia_resiliency_ext": "0.5.0"}, "fail", "needs glibc 2.39, here is 2.36"),
        (doctor.resiliency, {"nvidia_resiliency_ext": None}, "fail", "saves no checkpoint"),
        (doctor.torch, {"torch": None}, "fail", "no torch"),
    ],
)
def test_what_is_installed_is_judged(monkeypatch, tmp_path, check, versions, status, said):
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    install(monkeypatch, tmp_path, **versions)

    finding = check()

    assert (finding.status, said in finding.line) == (status, True), finding
    assert bool(finding.remedy) == (status != "ok")


@pytest.mark.parametrize("gpu", [False, True])
def test_kernels_are_missed_on_a_gpu_only(monkeypatch, tmp_path, gpu):
    monkeypatch.setattr(doctor, "_gpu", lambda: gpu)
    install(monkeypatch, tmp_path)

    expected = "warn" if gpu else "ok"
    assert [doctor.transformer_engine().status, doctor.flash_attention().status] == [expected, expected]


@pytest.mark.parametrize(("cuda", "status"), [("None", "warn"), ("'13.0'", "ok")])
def test_a_cpu_build_of_torch_beside_a_gpu_is_told(monkeypatch, tmp_path, cuda, status):
    monkeypatch.setattr(doctor, "_gpu", lambda: True)
    install(monkeypatch, tmp_path)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").touch()
    (tmp_path / "torch/version.py").write_text(f"cuda: Optional[str] = {cuda}\n")
    monkeypatch.delitem(__import__("sys").modules, "torch", raising=False)

    assert doctor.torch().status == status


def test_the_apex_of_pypi_blocks_training_and_nvidias_does_not(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, apex="0.9.10.dev0")
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex/__init__.py").write_text("raise ImportError('never imported')")
    expected = ["apex 0.9.10.dev0 is not NVIDIA's but PyPI's web toolkit: pip uninstall apex"]

    assert doctor.training_blockers() == expected

    (tmp_path / "apex/normalization").mkdir()
    assert doctor.training_blockers() == []


def test_a_pair_of_versions_that_breaks_blocks_training(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, megatron_core="0.16.1")

    assert len(doctor.training_blockers()) == 1


def test_the_doctor_exits_with_1_where_something_fails(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(doctor, "CHECKS", [doctor.psutil])
    install(monkeypatch, tmp_path, psutil=None)

    assert doctor.doctor() == 1
    assert capsys.readouterr().out == ("fail  no psutil: saving a checkpoint hangs\n      -> pip install psutil\n")


def test_a_local_version_is_a_version():
    assert doctor.installed("torch") == Version(__import__("importlib.metadata").metadata.version("torch"))
