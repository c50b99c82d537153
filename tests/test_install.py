"""Import rules of the package, and what an installation offers."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import espnet_bestow
from tests.import_rules import ALONE, HOUSE, ROOMS, imports_of, target_of, violation

REPO = Path(__file__).parents[1]
ROOT = REPO / "espnet_bestow"
FILES = sorted(ROOT.rglob("*.py"))


def run_python(code: str) -> str:
    """Output of `code` in a fresh interpreter; a failure shows what it wrote to stderr."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_contributing_shows_every_room_and_its_guests() -> None:
    assert sorted(HOUSE) == sorted({file.relative_to(ROOT).with_suffix("").parts[0] for file in FILES} - {"__init__"})
    assert ALONE
    imports = {(found.room, found.module.split(".")[0]) for file in FILES for found in imports_of(file, ROOT)}
    idle = [f"{room.name}: {guest}" for room in ROOMS for guest in room.guests if (room.name, guest) not in imports]
    assert not idle, idle


def test_no_room_is_entered_from_below() -> None:
    imports = [found for file in FILES for found in imports_of(file, ROOT)]
    wrong = [words for found in imports if (words := violation(found, ROOT))]
    assert not wrong, "\n".join(wrong)


def test_rooms_do_not_import_each_other_in_circles() -> None:
    rooms: dict[str, set[str]] = {}
    for file in FILES:
        for found in imports_of(file, ROOT):
            if target := target_of(found, ROOT):
                rooms.setdefault(found.room, set()).add(target)
    try:
        TopologicalSorter(rooms).prepare()
    except CycleError as error:
        pytest.fail(f"imports go round: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("connectors/x.py", "from espnet_bestow.task import BestowTask", "task stands above"),
        ("connectors/x.py", "from ..task import BestowTask", "task stands above"),
        ("model.py", "def f():\n    import espnet_bestow.bin.x", "bin stands above"),
        ("corpus/x.py", "from espnet_bestow import visibility", "nothing else of ours"),
        ("model.py", "from transformers import AutoModel", "only ['encoders', 'llm', 'prompt']"),
        ("ops/x.py", "import espnet2.layers", "only ['bin'"),
        ("task.py", "from espnet2 import legacy", "private to ESPnet"),
        ("task.py", "from espnet.nets.pytorch_backend import nets_utils", "private to ESPnet"),
    ],
)
def test_the_rules_catch(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    for module in ("bin/x.py", "task.py", "visibility.py", file):
        (tmp_path / module).parent.mkdir(exist_ok=True)
        (tmp_path / module).write_text("")
    (tmp_path / file).write_text(source)
    complaints = [violation(found, tmp_path) for found in imports_of(tmp_path / file, tmp_path)]
    assert any(complaint in words for words in complaints if words), complaints


def test_the_package_itself_imports_fast_and_light() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import espnet_bestow; "
        "print(time.perf_counter() - start, *{name.partition('.')[0] for name in sys.modules})"
    )
    seconds, *modules = run_python(code).split()
    assert float(seconds) < 1
    heavy = {"torch", "transformers", "espnet2", "peft", "numpy", "matplotlib", "soundfile"}
    assert not heavy & set(modules)


def test_lower_rooms_work_without_espnet() -> None:
    rooms = ("ops", "connectors", "llm", "visibility", "model", "streaming", "evaluate", "corpus")
    present = [room for room in rooms if (ROOT / room).is_dir() or (ROOT / f"{room}.py").is_file()]
    code = (
        # None in sys.modules makes an import of that name fail, as if it were not installed.
        "import importlib, sys; sys.modules.update(espnet=None, espnet2=None, simuleval=None)\n"
        f"for room in {present}: importlib.import_module('espnet_bestow.' + room); print(room)"
    )
    assert run_python(code).split() == present


def test_unknown_attribute_is_named() -> None:
    with pytest.raises(AttributeError, match="'espnet_bestow' has no attribute 'Speech3Text'"):
        _ = espnet_bestow.Speech3Text


def test_version_and_command_are_installed() -> None:
    assert importlib.metadata.version("espnet_bestow") == espnet_bestow.__version__
    (bestow,) = importlib.metadata.entry_points(group="console_scripts", name="bestow")
    assert bestow.value == "espnet_bestow.cli:main"


def test_wheel_needs_no_compiler_and_holds_the_package_only(tmp_path: Path) -> None:
    build = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    build += ["build", "--build-base", str(tmp_path / "build")]
    build += ["bdist_wheel", "--dist-dir", str(tmp_path / "dist")]
    build += ["--bdist-dir", str(tmp_path / "bdist")]
    no_tools = {"PATH": str(tmp_path), "HOME": str(tmp_path), "CC": "none", "CXX": "none"}
    done = subprocess.run(build, cwd=REPO, env=no_tools, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    made = {".pyc", ".so"}  # by Python, and by a build that had a compiler
    sources = {file for file in ROOT.rglob("*") if file.is_file() and file.suffix not in made}
    assert {file.relative_to(REPO).as_posix() for file in sources} <= set(names)
    info = f"espnet_bestow-{espnet_bestow.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"espnet_bestow", info}


def test_a_source_distribution_can_be_built_from(tmp_path: Path) -> None:
    build = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    build += ["sdist", "--dist-dir", str(tmp_path / "dist")]
    subprocess.run(build, cwd=REPO, check=True, capture_output=True)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {file.relative_to(REPO).as_posix() for part in ("csrc", "tools") for file in (REPO / part).rglob("*.*")}
    assert {name for name in wanted if not name.endswith(".pyc")} <= names


class TestBuildOps:
    """setup.py build_ext in a checkout that holds an older module, with compilers that fail."""

    @staticmethod
    def build(checkout: Path, cxx: str) -> subprocess.CompletedProcess[str]:
        for name in ("setup.py", "README.md", "espnet_bestow/__init__.py"):
            (checkout / name).parent.mkdir(exist_ok=True)
            (checkout / name).write_bytes((REPO / name).read_bytes())
        for name in ("tools", "csrc"):
            shutil.copytree(REPO / name, checkout / name)
        (checkout / "espnet_bestow" / "ops").mkdir()
        (checkout / "espnet_bestow" / "ops" / "_C.abi3.so").touch()
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        env = os.environ | {"CXX": cxx}
        return subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True)

    def test_the_older_module_does_not_stay(self, tmp_path: Path) -> None:
        done = self.build(tmp_path, "false")
        assert done.returncode == 0 and "attention runs on PyTorch alone" in done.stderr
        assert not list(tmp_path.rglob("_C.abi3.so"))

    def test_a_compiler_may_be_several_words(self, tmp_path: Path) -> None:
        told = tmp_path / "told"
        self.build(tmp_path, f"sh -c 'echo \"$@\" >>{told}; exit 1'")
        assert "-O3" in told.read_text(encoding="utf-8")


class TestMakeVenv:
    """tools/make_venv.sh in an empty checkout, on a machine with the basic commands only."""

    @pytest.fixture
    def checkout(self, tmp_path: Path) -> Path:
        (tmp_path / "tools").mkdir()
        for name in ("tools/make_venv.sh", "constraints.txt", "setup.py"):
            (tmp_path / name).write_bytes((REPO / name).read_bytes())
        return tmp_path

    @staticmethod
    def make_venv(checkout: Path, **env: str) -> subprocess.CompletedProcess[str]:
        commands = checkout / "commands"
        commands.mkdir()
        for name in ("bash", "cat", "cksum", "dirname", "head", "mkdir", "rm", "touch"):
            (commands / name).symlink_to(shutil.which(name) or f"{name} not found")
        clean = {"PATH": str(commands), "HOME": str(checkout), **env}
        script = [str(commands / "bash"), "tools/make_venv.sh"]
        return subprocess.run(script, cwd=checkout, env=clean, capture_output=True, text=True)

    def test_without_a_python_says_so_in_one_line(self, checkout: Path) -> None:
        done = self.make_venv(checkout)
        assert done.returncode != 0
        assert done.stderr.startswith("make: found neither Python 3.13 nor 3.12")
        assert len(done.stderr.splitlines()) == 1
        assert not (checkout / ".venv").exists()

    def test_an_unusable_python_is_named(self, checkout: Path) -> None:
        done = self.make_venv(checkout, PYTHON="/no/such/python")
        assert done.returncode != 0
        assert "PYTHON=/no/such/python is not a Python 3.12 or 3.13" in done.stderr

    def test_what_broke_off_is_not_built_upon(self, checkout: Path) -> None:
        leftover = checkout / ".venv" / "lib" / "half_a_package.py"
        leftover.parent.mkdir(parents=True)
        leftover.touch()
        (checkout / ".venv" / ".installing").touch()
        done = self.make_venv(checkout)
        assert ".venv is unfinished or was made elsewhere" in done.stdout
        assert not leftover.exists()

    def test_a_finished_venv_is_left_alone(self, checkout: Path) -> None:
        python = checkout / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
        sources = (checkout / name for name in ("constraints.txt", "setup.py"))
        content = b"".join(source.read_bytes() for source in sources)
        cksum = subprocess.run(["cksum"], input=content, capture_output=True, check=True)
        stamp = checkout / ".venv" / ".installed"
        stamp.write_text(f"{checkout}\n{cksum.stdout.decode()}")
        done = self.make_venv(checkout)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_a_moved_venv_is_made_anew(self, checkout: Path) -> None:
        python = checkout / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
        (checkout / ".venv" / ".installed").write_text("elsewhere\n0 0\n")
        done = self.make_venv(checkout)
        assert ".venv is unfinished or was made elsewhere" in done.stdout
        assert not (checkout / ".venv").exists()
