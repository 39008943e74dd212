#!/usr/bin/env bash
# tests/test_gpu.py and benchmarks/gpu.py on a machine that has torch, a GPU and no network (docs/gpu.md).
#
#   scripts/gpu_check.sh WHEELS OUT [options of benchmarks/gpu.py]
#
# WHEELS is the folder that scripts/gpu_wheels.sh filled; OUT gets gpu.json and gpu.txt. PYTHON is the
# Python with torch, if it is not python3. Nothing is installed beside an environment that goes again.
set -euo pipefail
fail() {
  echo "error: $*" >&2
  exit 2
}
[ $# -ge 2 ] || fail "usage: $0 WHEELS OUT [options of benchmarks/gpu.py]"
root=$(cd "$(dirname "$0")/.." && pwd)
wheels=$1 out=$2 python=${PYTHON:-python3}
shift 2
ls "$wheels"/*.whl >/dev/null 2>&1 || fail "$wheels has no wheels; scripts/gpu_wheels.sh makes them"
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' ||
  fail "the wheels are for Python 3.12, and $python is another; PYTHON says which one to take"
presumed=$(sed -n 's/^# presumed: //p' "$root/scripts/gpu_wheels.sh")
missing=$("$python" - $presumed <<'EOF'
import sys
from importlib.util import find_spec

print(*(name for name in sys.argv[1:] if find_spec(name) is None))
EOF
)
[ -z "$missing" ] || fail "$python has no $missing"

mkdir -p "$out"
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$python" -m venv --without-pip --system-site-packages "$place/venv"
ours=$place/venv/bin/python
"$python" -m pip --python "$ours" install --quiet --disable-pip-version-check --no-cache-dir \
  --no-index --no-deps --no-compile --ignore-installed "$wheels"/*.whl
# Where that Python is an environment itself, the new one would see only what lies below both.
"$python" - "$("$ours" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" <<'EOF'
import sys
import sysconfig
from pathlib import Path

folders = sorted({sysconfig.get_path(kind) for kind in ("purelib", "platlib")})
lines = [f"import site; site.addsitedir({folder!r})\n" for folder in folders]
Path(sys.argv[1], "torch_below.pth").write_text("".join(lines))
EOF
cd "$root"
set +e
PYTHONUNBUFFERED=1 "$ours" benchmarks/gpu.py --out "$out/gpu.json" "$@" 2>&1 | tee "$out/gpu.txt"
exit "${PIPESTATUS[0]}"
