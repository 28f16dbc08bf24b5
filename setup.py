"""Packaging of rope_study. Exact versions that were tested together: constraints.txt."""

from setuptools import find_packages, setup

# The only place with the address: badges and install cells are written from it (make notebooks).
REPOSITORY = "https://github.com/rope-study/rope_study"

# What `prepare` needs for some inputs: dumps, tables, zstd, near-duplicates, rows of tokens.
PREPARE = [
    "array_record>=0.8,<0.9",
    "mwparserfromhell>=0.7,<0.8",
    "mwxml>=0.3.8,<0.4",
    "pyarrow>=20,<27",
    "rensa>=0.5,<0.6",
    "zstandard>=0.23,<1",
]
BUCKETS = ["gcsfs>=2026.4"]  # with fsspec and google-cloud-storage, for etils.epath and Orbax

setup(
    name="rope_study",
    version="0.1.0",
    url=REPOSITORY,
    description="What the rotary frequencies of a decoder do: train, probe and compare them.",
    license="Apache-2.0",
    packages=find_packages(include=["rope_study", "rope_study.*"]),
    package_data={
        "rope_study": ["py.typed"],
        "rope_study.reports": ["*.html", "*.css"],
        "rope_study.reports.head_page": ["*.html", "*.css", "*.js"],
    },
    entry_points={"console_scripts": ["rope-study = rope_study.command:main"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "flax>=0.12,<0.13",
        "google-crc32c>=1.5,<2",
        "gguf>=0.19,<0.20",
        "grain>=0.2.12,<0.3",
        "jax>=0.10,<0.13",
        "matplotlib>=3.9,<4",
        "ml-collections>=1.0,<2",
        "ml-dtypes>=0.5,<1",
        "netCDF4>=1.7,<2",
        "numcodecs>=0.16,<1",
        "numpy>=2.0,<3",
        "optax>=0.2.5,<0.3",
        "orbax-checkpoint>=0.11.30,<0.13",
        "platformdirs>=4,<5",
        "safetensors>=0.5,<1",
        "sentencepiece>=0.2,<0.3",
        "tensorboardX>=2.6,<3",
        "tokenizers>=0.20,<1",
        "tqdm>=4.66,<5",
        "xarray>=2025.1",
        "zarr>=3.0,<4",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "gcs": BUCKETS,
        "cuda": ["jax[cuda]"],
        "prepare": PREPARE,
        "parity": ["accelerate>=1.1,<2", "torch>=2.6,<3", "transformers>=5.20,<6"],
        "dev": [
            *PREPARE,
            *BUCKETS,
            "chex>=0.1.90,<0.2",
            "gcp-storage-emulator==2026.7.19",
            "ipykernel>=6.29,<8",
            "nbclient>=0.10,<1",
            "nbformat>=5.10,<6",
            "playwright>=1.65,<2",
            "pyright==1.1.414",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff==0.17.6",
        ],
    },
)
