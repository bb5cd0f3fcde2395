"""Packaging of the plugin; the version stands in ``xmipp_accel/__init__.py``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
PACKAGE = "xmipp_accel"

# Scipion looks for protocols and viewers inside the plugin's package; in the repository they stand beside it.
MAPPED = {f"{PACKAGE}.{name}": name for name in ("protocols", "viewers")}

VERSION = re.search(r'__version__ = "(.+)"', (ROOT / PACKAGE / "__init__.py").read_text()).group(1)

TEST = [
    "pytest>=7,<10",
    "hypothesis>=6,<7",
    "pytest-benchmark>=4,<6",
    "ruff>=0.6,<1",
    "mypy>=1.8,<3",
    "build>=1,<2",
]

setup(
    name="scipion-em-xmipp-accel",
    version=VERSION,
    description="Accelerated movie alignment, 2D alignment and classification, and 3D reconstruction for Scipion",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="GPL-3.0-only",
    python_requires=">=3.9,<3.13",
    packages=[*find_packages(include=[PACKAGE, f"{PACKAGE}.*"]), *MAPPED],
    package_dir={PACKAGE: PACKAGE, **MAPPED},
    package_data={
        PACKAGE: ["protocols.conf", "*.png", "templates/*", "constraints.txt"],
        f"{PACKAGE}.kernels": ["cuda/*.cu", "cuda/*.cuh"],
        f"{PACKAGE}.report": ["*.html"],
    },
    entry_points={
        "pyworkflow.plugin": [f"{PACKAGE} = {PACKAGE}"],
        "console_scripts": [f"xmipp-accel = {PACKAGE}.cli:run"],
    },
    install_requires=[
        "scipion-pyworkflow>=3.11,<4",
        "scipion-em>=3.11,<4",
        "scipion-app>=3.8,<4",
        "numpy>=1.24,<2",
        "scipy>=1.9,<1.12",
        "mrcfile>=1.4,<=1.4.3",
        "tifffile>=2023.9,<2024",
        # From 2026.3 on it needs NumPy 2, which Scipion's pins exclude.
        "imagecodecs>=2024.1,<=2026.1.14",
        "emtable>=0.0.14,<0.1",
        "numba>=0.59,<0.69",
        "distributed>=2024.2,<2026.9",
        "matplotlib>=3.8,<3.9",
        "scikit-image>=0.19,<0.26",
        "jinja2>=3.1,<4",
        "tqdm>=4.60,<5",
        "psutil>=5.8,<=5.9.6",
        "threadpoolctl>=3,<4",
    ],
    extras_require={
        "cuda11": ["cupy-cuda11x>=13.3,<14"],
        "cuda12": ["cupy-cuda12x>=13.3,<14"],
        "cuda13": ["cupy-cuda13x>=13.6,<14"],
        "cluster": ["dask-jobqueue>=0.8.5,<0.10"],
        "test": TEST,
    },
)
