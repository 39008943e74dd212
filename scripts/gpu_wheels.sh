#!/usr/bin/env bash
# The wheels that modicum and trl need on a machine without a network that has torch (docs/gpu.md).
#
#   scripts/gpu_wheels.sh FOLDER      for Python 3.12 on Linux, x86-64; versions of constraints.txt
#
# Not in the folder, and presumed to be on that machine (scripts/gpu_check.sh looks):
# presumed: torch numpy scipy pandas pyarrow matplotlib sympy mpmath jinja2 markupsafe
#
# Left out as well: reasoning-gym, of whose own needs three have no wheels; only its tasks
# (`gym(...)`) want it, and nothing of docs/gpu.md runs them.
set -euo pipefail
[ $# = 1 ] || { echo "error: usage: $0 FOLDER" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
most=60 # MB
python=${PYTHON:-python3}

# Taken alone: what they need in turn is presumed, or below.
alone=(transformers peft accelerate trl datasets math-verify latex2sympy2_extended multiprocess)
# Taken with all that they need, in versions that go together; neither torch nor numpy is in it.
whole=(huggingface_hub tokenizers safetensors typer rich regex pyyaml tqdm packaging psutil dill xxhash
  antlr4-python3-runtime pytest)

folder=$1
mkdir -p "$folder"
[ -z "$(ls -A "$folder")" ] || { echo "error: $folder is not empty" >&2; exit 2; }
# pip takes no other versions of glibc than those it is told; newer ones run older wheels.
platforms=(--platform any)
for minor in 39 35 34 31 28 27 26 24 17 12 5; do
  platforms+=(--platform "manylinux_2_${minor}_x86_64")
done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64)
fetch() {
  "$python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: \
    --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none "${platforms[@]}" \
    -c "$root/constraints.txt" -d "$folder" "$@"
}
fetch --no-deps "${alone[@]}"
fetch "${whole[@]}"

bytes=$(cat "$folder"/*.whl | wc -c)
echo "$(ls "$folder"/*.whl | wc -l) wheels, $((bytes / 1000000)) MB in $folder"
if [ "$bytes" -gt $((most * 1000000)) ]; then
  echo "error: more than $most MB" >&2
  exit 2
fi
