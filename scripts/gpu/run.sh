#!/usr/bin/env bash
# Tests this machine's GPU with what was packed here: needs the NVIDIA driver; CUDA's compute-sanitizer and a Python with
# torch add parts. NEEDS says which glibc the programs want.
#
#   ./run.sh [PART...]    without names: every part
#
#   RESULTS=FOLDER        where results.json and the logs go (default: results beside this script)
#   SYNCBN_PYTHON=PROGRAM the Python with torch (default: python3)
#   FAKE=1                tries this script without a GPU, on the fakes packed with --fakes, as far as they go
#
# The exit code is 0 only if no part failed; a part that needs something the machine lacks is reported as missing.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
results="${RESULTS:-$PWD/results}"
mkdir -p "$results" || exit 1
{
  uname -srm
  ldd --version 2>&1 | head -n 1
  cat NEEDS
} | tee "$results/machine.log"
if ! ./node --version >"$results/node.log" 2>&1; then
  cat "$results/node.log"
  echo '{ "parts": [{ "name": "load", "status": "failed", "why": "node cannot start: see machine.log, node.log" }] }' \
    >"$results/results.json"
  exit 1
fi
exec ./node scripts/gpu/run.mjs "$results" "$@"
