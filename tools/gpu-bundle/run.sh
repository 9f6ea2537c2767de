#!/usr/bin/env bash
# Tests and times bitsandbytes-node on this machine's GPU. Needs the driver and python3 or xz, and no network.
#   run.sh check [part of a test's path ...]      the test suite; the GPU is the default device
#   run.sh sanitize [tool ...] [part of a path ...]  the tests of kernels under compute-sanitizer: memcheck, racecheck,
#                                                 synccheck (all three unless named; initcheck too, if named)
#   run.sh bench [option ...]                     the benchmarks, beside torch where it is installed; --help lists options
#   run.sh bnb [argument ...]                     the bnb command, such as bnb demo --device cuda:0
# Results, as JSON and text, go to $BNB_RESULTS (default: results/ beside this file). A short table comes last.
set -u
here=$(cd "$(dirname "$0")" && pwd)
results=${BNB_RESULTS:-$here/results}
mkdir -p "$results" && results=$(cd "$results" && pwd) || exit 1

unpack() { # file.xz, once
  [ -x "$here/$1" ] && [ "$here/$1" -nt "$here/$1.xz" ] && return
  if command -v xz >/dev/null; then
    xz -dc "$here/$1.xz" >"$here/$1.part"
  else
    python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"))' \
      "$here/$1.xz" "$here/$1.part"
  fi || { echo "run.sh: $1.xz could not be unpacked: install xz or python3"; exit 1; }
  chmod +x "$here/$1.part" && mv "$here/$1.part" "$here/$1"
}
unpack node
unpack bitsandbytes.node
export BNB_BINARY=$here/bitsandbytes.node
cd "$here/app" || exit 1

devices=$("$here/node" -e '
  const { devices, gpuStatus } = require("./dist/index.js");
  if (gpuStatus() !== "") console.log(gpuStatus());
  for (const d of devices()) console.log(`${d}  ${d.name}  ${(d.memory / 1e9).toFixed(0)} GB  ${d.isa || `compute capability ${d.computeCapability}`}`);
') || { echo "run.sh: the addon does not load"; exit 1; }
echo "$devices"
tr -d '\n{}"' <"$here/manifest.json"; echo
if ! grep -q '^cuda:0' <<<"$devices"; then
  echo "run.sh: no GPU was found. Is there a driver (nvidia-smi), at least as new as the toolkit that built this?"
  exit 1
fi
export BNB_TEST_DEVICE=cuda:0

check() { "$here/node" tests.mjs --report "$results/check.json" "$@"; }

sanitize() {
  local tools=() parts=() status=0 tool rows=""
  for word in "$@"; do
    case $word in
      memcheck | racecheck | synccheck | initcheck) tools+=("$word") ;;
      *) parts+=("$word") ;;
    esac
  done
  [ ${#tools[@]} -gt 0 ] || tools=(memcheck racecheck synccheck)
  [ ${#parts[@]} -gt 0 ] || parts=(ops/ optim/optimizer optim/clip)
  local sanitizer
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -1)
  [ -n "$sanitizer" ] || { echo "run.sh: compute-sanitizer was not found; it is part of the CUDA toolkit"; return 1; }
  for tool in "${tools[@]}"; do
    echo "=== $tool"
    # Only what runs on the GPU is of interest, and all of it is slow here.
    "$here/node" tests.mjs --grep 'cuda:0' --timeout "${BNB_TIMEOUT:-1200}" --report "$results/sanitize-$tool.json" \
      --wrap "$sanitizer --tool $tool --error-exitcode 99 --print-limit 20" "${parts[@]}" 2>&1 |
      tee "$results/sanitize-$tool.txt"
    if [ "${PIPESTATUS[0]}" -ne 0 ]; then status=1; rows+="$tool  FAILED"; else rows+="$tool  ok"; fi
    rows+="  $(tail -1 "$results/sanitize-$tool.txt")"$'\n'
  done
  echo "=== sanitize"
  echo -n "$rows"
  return $status
}

bench() { "$here/node" --expose-gc bench/gpu/main.js --manifest "$here/manifest.json" --out "$results/bench.json" "$@"; }

bnb() { "$here/node" dist/cli/main.js "$@"; }

command=${1:-}
[ $# -gt 0 ] && shift
case $command in
  check | sanitize | bench | bnb) "$command" "$@" ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$here/run.sh"; exit 2 ;;
esac
