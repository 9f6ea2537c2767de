#!/usr/bin/env bash
# Tests and times bitsandbytes-node on this machine's GPU. Needs the driver and python3 or xz, and no network.
#   run.sh all [--budget SECONDS]                 the three below in the order of their worth, in 780 seconds: check, a
#                                                 short memcheck, bench --quick
#   run.sh check [option ...] [part of a path ...]  the test suite; the GPU is the default device. --timeout SECONDS for
#                                                 one file (60), --budget SECONDS for all, --jobs N, --grep TEXT
#   run.sh sanitize [tool ...] [option ...] [part of a path ...]  the tests of kernels under compute-sanitizer: memcheck
#                                                 unless racecheck, synccheck or initcheck are named; first attention,
#                                                 the 4-bit linear layer and optimizers. --timeout (600), --budget, --jobs
#   run.sh bench [option ...]                     the benchmarks, beside torch and bitsandbytes where they are: --quick for about 40
#                                                 cases in under 4 minutes, --budget SECONDS; --help lists the others
#   run.sh profile [ncu option ...]               Nsight Compute on the kernels that decide the speed: profile.txt has what
#                                                 bounds each, profile.csv where in its code it waits
#   run.sh bnb [argument ...]                     the bnb command, such as bnb demo --device cuda:0
# Results, as JSON and text, go to $BNB_RESULTS (default: results/ beside this file), and are written as they come.
set -u -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
results=${BNB_RESULTS:-$here/results}
mkdir -p "$results" && results=$(cd "$results" && pwd) || exit 1

# file.xz, once: what it holds is written by the command that follows, from its standard input.
unpack() {
  local name=$1
  shift
  [ -e "$here/$name" ] && ! [ "$here/$name.xz" -nt "$here/$name" ] && return
  if command -v xz >/dev/null; then
    xz -dc "$here/$name.xz"
  else
    python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' "$here/$name.xz"
  fi | "$@" || { echo "run.sh: $name.xz could not be unpacked: install xz or python3"; exit 1; }
}
binary() { cat >"$here/$1.part" && chmod +x "$here/$1.part" && mv "$here/$1.part" "$here/$1"; }
folder() {
  rm -rf "$here/app" && tar -xf - -C "$here" && touch "$here/app.tar"
}

# The cuBLASLt that torch brings, where the system has none: it lies in a folder of Python's packages, where the loader
# does not look. Found without importing torch, which takes seconds.
find_cublaslt() {
  [ -n "${BNB_CUBLASLT+set}" ] && return
  { ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null; } | grep 'libcublasLt\.so\.1[23]' >/dev/null && return
  local found
  found=$(python3 - <<'PYTHON' 2>/dev/null
import glob, importlib.util, os
folders = [f for name in ("nvidia", "torch") if (spec := importlib.util.find_spec(name))
           for f in spec.submodule_search_locations or []]
found = [p for f in folders for p in glob.glob(os.path.join(f, "**", "libcublasLt.so.1[23]"), recursive=True)]
print(max(found, key=os.path.basename, default=""))
PYTHON
  )
  [ -n "$found" ] && export BNB_CUBLASLT=$found && echo "cuBLASLt: $found"
}

unpack node binary node
unpack bitsandbytes.node binary bitsandbytes.node
unpack app.tar folder
export BNB_BINARY=$here/bitsandbytes.node
find_cublaslt
cd "$here/app" || exit 1

show_devices() {
  local devices
  devices=$("$here/node" -e '
    const { devices, gpuStatus } = require("./dist/index.js");
    const { missing } = gpuStatus();
    if (missing !== "") console.log(missing);
    for (const d of devices()) console.log(`${d}  ${d.name}  ${(d.memory / 1e9).toFixed(0)} GB  ${d.isa || `compute capability ${d.computeCapability}`}`);
  ') || { echo "run.sh: the addon does not load"; exit 1; }
  echo "$devices"
  tr -d '\n{}"' <"$here/manifest.json"; echo
  if ! grep -q '^cuda:0' <<<"$devices"; then
    echo "run.sh: no GPU was found. Is there a driver (nvidia-smi), at least as new as the toolkit that built this?"
    exit 1
  fi
}
# The steps of `all` need not look again: a GPU takes its time to be opened.
[ -n "${BNB_FOUND:-}" ] || show_devices
export BNB_FOUND=1
export BNB_TEST_DEVICE=cuda:0

check() { "$here/node" tests.mjs --timeout 60 --report "$results/check.json" "$@" 2>&1 | tee "$results/check.txt"; return "${PIPESTATUS[0]}"; }

sanitize() {
  local tools=() options=() parts=() status=0 tool rows="" outcome
  while [ $# -gt 0 ]; do
    case $1 in
      memcheck | racecheck | synccheck | initcheck) tools+=("$1") ;;
      --*) options+=("$1" "${2-}"); shift ;;
      *) parts+=("$1") ;;
    esac
    shift
  done
  [ ${#tools[@]} -gt 0 ] || tools=(memcheck)
  # What has the most to get wrong comes first: the rest runs if time is left.
  [ ${#parts[@]} -gt 0 ] || parts=(ops/attention ops/linear-4bit optim/optimizer ops/ optim/clip)
  local sanitizer
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -1)
  [ -n "$sanitizer" ] || { echo "run.sh: compute-sanitizer was not found; it is part of the CUDA toolkit"; return 1; }
  # Some machines refuse it: better said once than for each file.
  if ! timeout 120 "$sanitizer" --error-exitcode 99 "$here/node" -e '
    const { ones, setDefaultDevice, synchronize } = require("./dist/index.js");
    setDefaultDevice("cuda:0");
    ones([64]).add(1).data().then(() => process.exit(0));
  ' >"$results/sanitize.txt" 2>&1; then
    echo "run.sh: compute-sanitizer cannot run one op here:"
    tail -5 "$results/sanitize.txt"
    return 1
  fi
  for tool in "${tools[@]}"; do
    echo "=== $tool"
    # Only what runs on the GPU is of interest, and all of it is slow here.
    "$here/node" tests.mjs --grep 'cuda:0' --timeout 600 --report "$results/sanitize-$tool.json" \
      --wrap "$sanitizer --tool $tool --error-exitcode 99 --print-limit 20" "${options[@]}" "${parts[@]}" 2>&1 |
      tee "$results/sanitize-$tool.txt"
    case ${PIPESTATUS[0]} in
      0) outcome=ok ;;
      3) outcome="ok as far as it came" ;;
      *) outcome=FAILED; status=1 ;;
    esac
    rows+="$tool  $outcome  $(tail -1 "$results/sanitize-$tool.txt")"$'\n'
  done
  echo "=== sanitize"
  echo -n "$rows"
  return $status
}

bench() {
  "$here/node" --expose-gc bench/gpu/main.js --manifest "$here/manifest.json" --out "$results/bench.json" "$@" 2>&1 |
    tee "$results/bench.txt"
  return "${PIPESTATUS[0]}"
}

profile() {
  local ncu kernels='small_m|tile|mma_kernel|step_kernel|quantize|int8_linear|dense'
  ncu=$(command -v ncu || ls /usr/local/cuda*/bin/ncu 2>/dev/null | tail -1)
  [ -n "$ncu" ] || { echo "run.sh: ncu was not found; it is part of the CUDA toolkit"; return 1; }
  "$ncu" --set full --clock-control none -k "regex:$kernels" -f -o "$results/profile" "$@" \
    "$here/node" bench/gpu/profile.js 2>&1 | grep -v '^==PROF==.*passes$' | tail -20
  [ "${PIPESTATUS[0]}" -eq 0 ] || return 1
  "$ncu" -i "$results/profile.ncu-rep" --page details >"$results/profile.txt"
  "$ncu" -i "$results/profile.ncu-rep" --page source --csv >"$results/profile.csv"
  "$ncu" -i "$results/profile.ncu-rep" --page raw --csv --metrics \
    gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__throughput.avg.pct_of_peak_sustained_elapsed,l1tex__throughput.avg.pct_of_peak_sustained_active,lts__throughput.avg.pct_of_peak_sustained_elapsed,launch__registers_per_thread,sm__warps_active.avg.pct_of_peak_sustained_active |
    cut -c1-400
}

bnb() { "$here/node" dist/cli/main.js "$@"; }

# What comes later has its share kept for it, and gets what the former left.
all() {
  local budget=780 summary="" status=0 began
  [ "${1:-}" = --budget ] && budget=$2
  left() { echo $((budget - SECONDS)); }
  step() { # name, seconds, command ...
    local name=$1 seconds=$2
    shift 2
    if [ "$seconds" -lt $((budget / 40)) ]; then
      summary+="$name  NOT RUN, the time was up"$'\n'
      return
    fi
    echo "=== $name: $seconds s"
    began=$SECONDS
    # What hangs beyond what it was given is ended from here.
    BNB_RESULTS=$results timeout -k 5 $((seconds + 15)) "$here/run.sh" "$@"
    local outcome=$?
    case $outcome in
      0) summary+="$name  ok" ;;
      3) summary+="$name  NOT RUN TO THE END"; [ $status -ne 0 ] || status=3 ;;
      124 | 137) summary+="$name  STOPPED"; status=1 ;;
      *) summary+="$name  FAILED"; status=1 ;;
    esac
    summary+="  $((SECONDS - began)) s"$'\n'
  }
  step check $(($(left) * 55 / 100)) check --budget $(($(left) * 55 / 100))
  step sanitize $(($(left) * 35 / 100)) sanitize memcheck --budget $(($(left) * 35 / 100))
  local rest=$(($(left) - 15))
  step bench "$rest" bench --quick --budget "$rest"
  echo "=== all: $SECONDS of $budget s, results in $results"
  echo -n "$summary"
  return $status
}

command=${1:-}
[ $# -gt 0 ] && shift
case $command in
  all | check | sanitize | bench | profile | bnb) "$command" "$@" ;;
  *) sed -n '2,17s/^# \{0,1\}//p' "$here/run.sh"; exit 2 ;;
esac
