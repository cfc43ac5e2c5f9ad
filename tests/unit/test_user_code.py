"""A user's code: kept by content, refused where it holds too much or leads elsewhere, run with what it requires."""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import packaging
import pytest

from activities.compute import code as codes
from activities.compute import training
from activities.jobs import shelf, surroundings
from everloop import client, engine
from everloop import settings as configuration
from everloop.artifacts import Artifacts
from everloop.errors import Forbidden, Invalid, InvalidSpec, NotFound, TrainerFailed
from everloop.records import Code
from everloop.requirements import required
from everloop.specs import LifecycleSpec, checked
from tests.job import FolderJob

HERE = Path(__file__).parent
BASE = {"model": "m", "task": "binary", "target": "y", "source": {"path": "/t.csv"}, "trainer": "mine:fit"}


def spec(**more: Any) -> LifecycleSpec:
    return checked(BASE | more)


def folder(place: Path, **files: str) -> Path:
    for name, text in ({"mine.py": "def fit(t): ...\n"} | files).items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return place


def names(artifacts: Artifacts, code: Code | None) -> list[str]:
    assert code is not None and code.archive is not None
    with tarfile.open(fileobj=io.BytesIO(artifacts.get(code.archive))) as archive:
        return archive.getnames()


# --- what is kept -------------------------------------------------------------------------------


def test_the_same_files_are_the_same_code_wherever_and_whenever(tmp_path: Path, artifacts: Artifacts) -> None:
    first = folder(tmp_path / "a", **{"deep/b.py": "x = 1\n", "__pycache__/mine.pyc": "old"})
    second = folder(tmp_path / "b", **{"deep/b.py": "x = 1\n", ".git/config": "secret", ".venv/lib/x.py": "no"})
    os.utime(second / "mine.py", (0, 0))
    (second / "mine.py").chmod(0o755)

    one = codes.keep(spec(code=str(first)), artifacts)
    two = codes.keep(spec(code=str(second)), artifacts)
    (second / "deep" / "b.py").write_text("x = 2\n")
    other = codes.keep(spec(code=str(second)), artifacts)

    assert one == two and one is not None and other is not None
    assert one.digest != other.digest
    assert names(artifacts, one) == ["deep/b.py", "mine.py"]


def test_code_that_was_kept_is_named_by_its_digest(tmp_path: Path, artifacts: Artifacts) -> None:
    place = folder(tmp_path / "a", **{"requirements.txt": "# of ours\nsix>=1.16 # why\n\nidna\n"})
    first = codes.keep(spec(code=str(place)), artifacts)
    assert first is not None and first.archive is not None
    (place / "mine.py").write_text("broken(")

    again = codes.keep(spec(code=f"sha256:{first.archive.sha256}"), artifacts)

    assert again is not None and again.digest == first.digest
    assert required(b"# of ours\nsix>=1.16 # why\n\nidna\n") == ("six>=1.16", "idna")
    with pytest.raises(NotFound):
        codes.keep(spec(code=f"sha256:{'0' * 64}"), artifacts)


def test_a_requirements_file_may_begin_as_windows_writes_it_and_pips_own_exception_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert required(b"\xef\xbb\xbfsix==1.16.0\t# why\r\n\t# all of it\r\nidna\r\n") == ("six==1.16.0", "idna")

    say = "print('ERROR: Exception:\\nTraceback:\\nInvalidMarker: no marker'); raise SystemExit(2)"
    with pytest.raises(TrainerFailed, match=r"pip cannot install six; -x: .*InvalidMarker: no marker$"):
        surroundings._said([sys.executable, "-c", say], dict(os.environ), ("six; -x",))
    assert "InvalidMarker" in capsys.readouterr().out


def test_requirements_of_the_spec_win_and_count_as_code(tmp_path: Path, artifacts: Artifacts) -> None:
    place = folder(tmp_path / "a", **{"requirements.txt": "idna\n"})

    said = codes.keep(spec(code=str(place), requirements=["six==1.16.0"]), artifacts)
    found = codes.keep(spec(code=str(place)), artifacts)
    without = codes.keep(spec(requirements=["idna"]), artifacts)

    assert said is not None and said.requirements == ("six==1.16.0",)
    assert found is not None and found.digest != said.digest
    assert without == Code(requirements=("idna",))
    assert codes.keep(checked(BASE | {"trainer": "lightgbm"}), artifacts) is None


@pytest.mark.parametrize(
    "line", ["--index-url https://example.org/simple", "-r other.txt", "-e .", "./wheel.whl", "git+https://x/y"]
)
def test_a_requirements_file_names_packages_and_nothing_else(tmp_path: Path, artifacts: Artifacts, line: str) -> None:
    place = folder(tmp_path / "a", **{"requirements.txt": f"idna\n{line}\n"})

    with pytest.raises(TrainerFailed, match="may not say") as caught:
        codes.keep(spec(code=str(place)), artifacts)
    assert caught.value.field == "requirements"


def test_data_is_left_out_and_too_much_names_the_largest(
    tmp_path: Path, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(codes, "MOST_BYTES", 3 << 20)
    place = folder(tmp_path / "a", **{"words.json": "{}"})
    (place / "rows.csv").write_bytes(b"1" * (2 << 20))

    assert names(artifacts, codes.keep(spec(code=str(place)), artifacts)) == ["mine.py", "words.json"]
    assert "left out of the code: rows.csv, 2,097,152 bytes of data" in capsys.readouterr().out

    (place / "big.txt").write_bytes(b"1" * (4 << 20))
    with pytest.raises(TrainerFailed, match=r"The largest: big.txt \(4,194,304 bytes\), mine.py") as caught:
        codes.keep(spec(code=str(place)), artifacts)
    assert caught.value.field == "code"


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside.py"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, artifacts: Artifacts, target: str) -> None:
    (tmp_path / "outside.py").write_text("secret = 1")
    place = folder(tmp_path / "a")
    (place / "inside.py").symlink_to("mine.py")
    assert "inside.py" in names(artifacts, codes.keep(spec(code=str(place)), artifacts))
    (place / "link.py").symlink_to(target)

    with pytest.raises(TrainerFailed, match=r"link.py is a link that leads out of the folder"):
        codes.keep(spec(code=str(place)), artifacts)


def test_an_environment_is_left_out_by_what_it_holds_and_a_linked_folder_is_said(
    tmp_path: Path, artifacts: Artifacts, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder(tmp_path / "a", **{"env/pyvenv.cfg": "", "env/lib/x.py": "", "sub/y.py": "v = 1\n"})
    (place / "env" / "bin").mkdir()
    (place / "env" / "bin" / "python").symlink_to(sys.executable)
    (place / "same").symlink_to("sub")

    assert names(artifacts, codes.keep(spec(code=str(place)), artifacts)) == ["mine.py", "sub/y.py"]
    assert "left out of the code: same, a link to a folder" in capsys.readouterr().out

    (place / "sub" / "round").symlink_to("round")
    with pytest.raises(TrainerFailed, match=r"^sub/round is a link that leads to itself$"):
        codes.keep(spec(code=str(place)), artifacts)


def test_a_folder_that_cannot_be_listed_is_named_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "a", **{"closed/part.py": ""})
    (tmp_path / "a" / "closed").chmod(0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    us = os.geteuid()
    os.seteuid(us or 65534)  # root may read everything
    try:
        with pytest.raises(PermissionError, match="'a/closed"):
            codes.packed(Path("a"))
    finally:
        os.seteuid(us)
        (tmp_path / "a" / "closed").chmod(0o755)


def test_a_path_that_leads_nowhere_is_shown_whole(tmp_path: Path, artifacts: Artifacts) -> None:
    with pytest.raises(TrainerFailed, match=rf"^{tmp_path}/gone/b cannot be read: no such file"):
        codes.keep(spec(code=str(tmp_path / "gone" / "b")), artifacts)


def wheel_of(path: Path, **files: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"mine.py": "", "../evil.py": ""}, "'../evil.py', which leads out"),
        ({"mine.py": "", "a": "", "a/b.py": ""}, "'a' as a file and as a folder"),
        ({"mine.txt": ""}, "holds no module"),
        ({"mine.py": "", "zeros": "0" * (5 << 20)}, r"holds 5,242,880 bytes .* The largest: zeros"),
    ],
)
def test_a_wheel_that_cannot_be_unpacked_is_refused_before_anything_learns(
    tmp_path: Path, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], says: str
) -> None:
    monkeypatch.setattr(codes, "MOST_BYTES", 3 << 20)
    with pytest.raises(TrainerFailed, match=says) as caught:
        codes.keep(spec(code=str(wheel_of(tmp_path / "mine.whl", **files))), artifacts)
    assert caught.value.field == "code"


def test_bytes_that_are_no_wheel_or_a_damaged_one_are_refused_in_one_line(tmp_path: Path, artifacts: Artifacts) -> None:
    damaged = bytearray(wheel_of(tmp_path / "mine.whl", **{"mine.py": "def fit(t): ...\n" * 9}).read_bytes())
    damaged[45] ^= 0xFF
    for data in (b"", b"hello", bytes(damaged)):
        (tmp_path / "mine.whl").write_bytes(data)
        with pytest.raises(TrainerFailed, match=r"^the code is no archive: [^\n]+$"):
            codes.keep(spec(code=str(tmp_path / "mine.whl")), artifacts)


def test_what_is_no_code_is_said(tmp_path: Path, artifacts: Artifacts) -> None:
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for path, says in (
        ("file.txt", "neither a folder nor a wheel"),
        ("empty", "no Python file"),
        ("gone", "no such file"),
    ):
        with pytest.raises(TrainerFailed, match=says) as caught:
            codes.keep(spec(code=str(tmp_path / path)), artifacts)
        assert caught.value.field == "code"


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"code": "relative"}, "code"),
        ({"code": "sha256:abc"}, "code"),
        ({"trainer": "lightgbm", "code": "/x"}, "code"),
        ({"trainer": "lightgbm", "requirements": ["idna"]}, "requirements"),
        ({"requirements": ["-r x"]}, "requirements.0"),
        ({"requirements": [f"package-{number:030}" for number in range(99)]}, "requirements"),
        ({"params": {"words": "x" * 30_000}}, "params"),
        ({"params": {"half": "\ud800"}}, "params"),
        ({"trainer": "no colon"}, "trainer"),
        ({"inputs": "both"}, "inputs"),
    ],
)
def test_a_spec_that_cannot_be_is_refused_by_its_field(more: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        spec(**more)
    assert caught.value.field == field


def test_a_relative_folder_of_code_is_beside_the_spec(tmp_path: Path) -> None:
    place = tmp_path / "spec.json"
    place.write_text(json.dumps(BASE | {"code": "./trainers/../mine"}))

    assert client.load_spec(place)["code"] == str(tmp_path / "mine")
    assert client.load_spec(BASE | {"code": f"sha256:{'a' * 64}"})["code"] == f"sha256:{'a' * 64}"


# --- where it runs ------------------------------------------------------------------------------


def test_a_folder_is_made_once_however_many_need_it_at_one_moment(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom activities.jobs.shelf import shelved\n"
        "def make(folder):\n    (folder / 'began').touch(exist_ok=False)\n    time.sleep(0.5)\n"
        "    (folder / 'made').write_text('x')\n    open(sys.argv[2], 'a').write('made\\n')\n"
        "print((shelved(Path(sys.argv[1]), 'key', make) / 'made').read_text())\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "shelf"), str(tmp_path / "diary")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=engine.environment()) for _ in range(3)]
    said = [process.communicate(timeout=60)[0] for process in running]

    assert [process.returncode for process in running] == [0, 0, 0]
    assert all(text.endswith("x\n") for text in said)
    assert (tmp_path / "diary").read_text() == "made\n"


def test_what_could_not_be_made_leaves_nothing_and_what_is_used_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "MOST", 2)

    def fail(place: Path) -> None:
        (place / "half").touch()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        shelf.shelved(tmp_path, "broken", fail)
    assert not (tmp_path / "broken").exists()

    for name in ("a", "b", "c"):
        shelf.shelved(tmp_path, name, lambda place: None)
        time.sleep(0.02)
    assert (tmp_path / "a").exists()  # this process uses it
    while shelf._held:
        shelf._held.pop().close()
    shelf.shelved(tmp_path, "d", lambda place: None)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["c", "d"]


@pytest.mark.parametrize("name", ["../out.py", "/tmp/out.py"])
def test_an_archive_cannot_write_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())

    with pytest.raises(TrainerFailed, match="leads out of it"):
        surroundings._unpack(made.getvalue(), tmp_path / "in")
    with pytest.raises(TrainerFailed, match="no archive"):
        surroundings._unpack(b"plain bytes", tmp_path / "in")


def job(folder: Path, artifacts: Artifacts, code: Code, **values: Any) -> tuple[dict[str, Any], str]:
    """Run `required.versions` as a child process with *code* around it. What it left, and its log."""
    place = folder / f"job-{time.monotonic_ns()}"
    (place / "scratch").mkdir(parents=True)
    request = {"function": "versions", "values": values, "code": code.model_dump(mode="json")}
    order = {"root": "job_functions", "function": "required.versions", "request": request, "digest": "", "log": ""}
    order |= {"artifacts": str(artifacts.root), "predictions_dir": str(folder), "floor_bytes": 0}
    (place / "request.json").write_text(json.dumps(order))
    outside = engine.environment({"EVERLOOP_DATA_DIR": str(folder / "data"), "PIP_PROGRESS_BAR": "off"})
    outside["PYTHONPATH"] += os.pathsep + str(HERE.parent / "faults")
    command = [sys.executable, "-m", "activities.jobs.child", str(place)]
    done = subprocess.run(command, env=outside, capture_output=True, text=True, timeout=240, check=False)
    left = place / "result.json" if (place / "result.json").exists() else place / "error.json"
    assert left.exists(), done.stdout + done.stderr
    return json.loads(left.read_text()), done.stdout + done.stderr


def test_a_required_version_wins_over_ours_in_its_job_alone_and_is_installed_once(
    tmp_path: Path, artifacts: Artifacts
) -> None:
    assert packaging.__version__ != "24.2"
    files = {"of_a_user.py": "from packaging import __version__\n", "requirements.txt": "packaging==24.2\n"}
    kept = codes.keep(spec(code=str(folder(tmp_path / "code", **files))), artifacts)
    assert kept is not None

    first, log = job(tmp_path, artifacts, kept, packages=["packaging", "of_a_user", "numpy"], modules=["of_a_user"])
    again, second_log = job(tmp_path, artifacts, kept, packages=["packaging"])
    plain, _ = job(tmp_path, artifacts, Code(), packages=["packaging"])

    import numpy as np

    found = first["result"]["values"]
    assert found["versions"] == {"packaging": "24.2", "of_a_user": "24.2", "numpy": np.__version__}
    assert found["modules"]["of_a_user"].startswith(str(tmp_path / "data" / "scratch" / "code" / "files"))
    assert found["prefix"].startswith(str(tmp_path / "data" / "scratch" / "code" / "environments"))
    assert found["pip"] == []  # an index's password is not for the user's code
    assert "Successfully installed packaging-24.2" in log
    assert again["result"]["values"]["versions"] == {"packaging": "24.2"}
    assert "installing" not in second_log
    assert plain["result"]["values"]["versions"] == {"packaging": packaging.__version__}
    assert plain["result"]["values"]["prefix"] == sys.prefix


def test_an_install_that_fails_says_pips_last_lines_and_is_tried_again(tmp_path: Path, artifacts: Artifacts) -> None:
    impossible = Code(requirements=("packaging<0.1",))

    failed, log = job(tmp_path, artifacts, impossible, packages=[])

    assert failed["error"] == "TrainerFailed" and failed["field"] == "requirements"
    assert "No matching distribution found for packaging<0.1" in failed["message"]
    assert "No matching distribution found" in log
    assert not list((tmp_path / "data" / "scratch" / "code" / "environments").glob("*/"))


def test_requirements_that_our_own_code_cannot_start_with_are_said_and_not_called_a_bug(tmp_path: Path) -> None:
    """The process of a job with them ends before it can say anything: it is asked for once, after the install."""
    (tmp_path / "pydantic.py").write_text("version = 'of the last century'\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec env PYTHONPATH={tmp_path}:"$PYTHONPATH" {sys.executable} "$@"\n')
    python.chmod(0o755)

    with pytest.raises(
        TrainerFailed, match=r"does not start with these requirements: ImportError: .*pydantic"
    ) as caught:
        surroundings._starts(str(python))
    assert caught.value.field == "requirements"
    surroundings._starts(sys.executable)


def test_a_wheel_is_code(tmp_path: Path, artifacts: Artifacts) -> None:
    with zipfile.ZipFile(tmp_path / "mine-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("of_a_wheel/__init__.py", "__version__ = '7'\n")
        wheel.writestr("mine-1.dist-info/METADATA", "Name: mine\nVersion: 1\n")
    kept = codes.keep(spec(code=str(tmp_path / "mine-1-py3-none-any.whl")), artifacts)
    assert kept is not None

    left, _ = job(tmp_path, artifacts, kept, packages=["of_a_wheel"])

    assert left["result"]["values"]["versions"] == {"of_a_wheel": "7"}


def test_what_a_wheel_says_wrong_of_itself_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, said in (("bad", b"Name: \xff\xfe"), ("nameless", b"Version: 1"), ("good", b"Name: mine\nVersion: 7")):
        (tmp_path / "files" / f"{name}-1.dist-info").mkdir(parents=True)
        (tmp_path / "files" / f"{name}-1.dist-info" / "METADATA").write_bytes(said)
    monkeypatch.syspath_prepend(str(tmp_path / "files"))
    job = FolderJob(tmp_path)

    kept = training._environment(Code(), spec(), job)

    assert kept is not None
    packages = json.loads(job.artifacts.get(kept))["packages"]
    assert "mine==7" in packages and any(each.startswith("numpy==") for each in packages)


def test_a_package_may_not_be_called_as_one_of_ours(tmp_path: Path, artifacts: Artifacts) -> None:
    kept = codes.keep(spec(code=str(folder(tmp_path / "a", **{"workers/__init__.py": ""}))), artifacts)
    assert kept is not None

    left, _ = job(tmp_path, artifacts, kept, packages=[])

    assert left["error"] == "TrainerFailed" and "'workers' is taken" in left["message"]


# --- who may ------------------------------------------------------------------------------------


def test_who_may_bring_code_is_a_setting_with_three_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERLOOP_USER_CODE", raising=False)
    assert configuration.load().user_code == "owner"
    for word in ("off", "all"):
        monkeypatch.setenv("EVERLOOP_USER_CODE", word)
        assert configuration.load().environment()["EVERLOOP_USER_CODE"] == word
    monkeypatch.setenv("EVERLOOP_USER_CODE", "on")
    with pytest.raises(Invalid, match="must be one of owner, all, off"):
        configuration.load()


@pytest.mark.parametrize(
    ("mode", "person", "refused"),
    [
        ("owner", "ada", False),
        ("owner", "bob", True),
        ("off", "ada", True),
        ("off", "bob", True),
        ("all", "bob", False),
    ],
)
def test_a_trainer_of_their_own_is_for_whom_the_setting_says(mode: str, person: str, refused: bool) -> None:
    from api.lifecycle.submitting import _may_bring_code

    here = configuration.load(user_code=mode, person="ada")
    _may_bring_code(here, person, checked(BASE | {"trainer": "lightgbm"}))
    if not refused:
        _may_bring_code(here, person, spec())
        return
    with pytest.raises(Forbidden) as caught:
        _may_bring_code(here, person, spec())
    assert caught.value.field == "trainer"
