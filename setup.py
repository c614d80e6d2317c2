"""Packaging. Ranges are loose; requirements.lock is what is tested."""

from pathlib import Path
import re

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(
  r"__version__ = '(.+)'", (here / 'jax_robust_kd/__init__.py').read_text()
)

setup(
  name='jax_robust_kd',
  version=version[1],
  description='Adversarially robust knowledge distillation in JAX',
  long_description=(here / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11,<3.14',
  packages=[
    *find_packages(include=['jax_robust_kd', 'jax_robust_kd.*']),
    'jax_robust_kd.configs',
  ],
  package_dir={'jax_robust_kd.configs': 'configs'},
  package_data={
    'jax_robust_kd': [
      'data/*.npz',
      'data/*.txt',
      'models/teachers.json',
      'report/templates/*.j2',
    ]
  },
  entry_points={
    'console_scripts': ['jax-robust-kd = jax_robust_kd.__main__:start'],
  },
  install_requires=[
    'jax>=0.10.2',
    'flax>=0.12.8',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.8',
    'ml-collections>=1.1',
    'absl-py>=2.1',
    'numpy>=2.0',
    'rich>=13.7',
    'grain>=0.2.18',
    'tensorflow-datasets>=4.9.10',
    # What tensorflow-datasets needs to read without TensorFlow, and omits.
    'array-record>=0.8',
    'importlib-resources>=6.0',
    'pillow>=10.0',
  ],
  extras_require={
    'prepare': ['tensorflow-cpu>=2.20'],  # once, for TFDS sets but CIFAR
    'tensorboard': ['tensorboardX>=2.6'],
    'report': ['matplotlib>=3.9', 'jinja2>=3.1'],  # pictures and pages
    'tpu': ['jax[tpu]>=0.10.2'],
    'cuda': ['jax[cuda13]>=0.10.2'],
    'litert': [  # the converter's calls are those of one version
      'litert-converter==0.5.*',
      'ai-edge-litert>=2.3',
      'ai-edge-quantizer>=0.10',
      'flatbuffers>=24',
    ],
    'onnx': [
      'torch>=2.6',
      'onnx>=1.18',
      'onnxscript>=0.5',
      'onnxruntime>=1.20',
    ],
    'stablehlo': ['flatbuffers>=24'],
    'torch': ['torch>=2.6'],  # comparisons in tests and benchmarks
    'docs': [
      'zensical>=0.0.70',
      'mkdocstrings-python>=2.0',
      'nbclient>=0.10',  # runs the tutorial
      'ipykernel>=6.29',
    ],
    'release': ['build>=1.2', 'twine>=6.0'],
    'dev': [
      'flatbuffers>=24',
      'setuptools>=77',  # builds the wheel in a test
      'pytest>=8',
      'pytest-timeout>=2.3',
      'pytest-xdist>=3.6',
      'ruff>=0.9',
      'pyright[nodejs]>=1.1.400',
    ],
  },
)
