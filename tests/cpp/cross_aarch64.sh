#!/bin/sh
# Builds the kernels and their tests for aarch64 and runs them under qemu: the golden bits must be those of x86-64.
#   tests/cpp/cross_aarch64.sh [build folder, default: a temporary one]
# Needs g++-aarch64-linux-gnu and qemu-user; without them it says so and succeeds.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
compiler=${CXX_AARCH64:-aarch64-linux-gnu-g++}
emulator=${QEMU_AARCH64:-qemu-aarch64}
for tool in "$compiler" "$emulator"; do
  command -v "$tool" >/dev/null 2>&1 || { echo "skipped: $tool is not installed"; exit 0; }
done
if [ $# -gt 0 ]; then
  build=$1
  mkdir -p "$build"
else
  build=$(mktemp -d)
  trap 'rm -rf "$build"' EXIT
fi

# The flags of the kernels in CMakeLists.txt; aarch64 has fused multiply-add, so -ffp-contract=off is at work here.
flags="-std=c++17 -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror -Wno-unused-parameter"
includes="-I$root/kernels -I$root/tests/cpp"
# shellcheck disable=SC2086
"$compiler" $flags $includes -c "$root/kernels/step_cpu.cpp" -o "$build/step_cpu.o"
# shellcheck disable=SC2086
"$compiler" $flags $includes -c "$root/tests/cpp/step_isa.cpp" -o "$build/step_isa.o"
for name in test_philox test_step test_step_rare test_step_math test_step_isa test_reduce; do
  # shellcheck disable=SC2086
  "$compiler" $flags $includes -static "$root/tests/cpp/$name.cpp" "$build/step_cpu.o" "$build/step_isa.o" \
    -o "$build/$name"
  echo "$name (aarch64)"
  "$emulator" "$build/$name"
done
