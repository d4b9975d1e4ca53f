#!/bin/sh
# Builds examples/guest_run.rs as what it has to be: static, not relocatable, out of the way of the target's code.
set -e
cd "$(dirname "$0")/../../.."
export RUSTFLAGS="-Ctarget-feature=+crt-static -Crelocation-model=static -Clink-arg=-no-pie -Clink-arg=-Wl,--image-base=0x30000000"
exec nice -n 19 cargo build -j 1 --release --target x86_64-unknown-linux-gnu -p leakscope-guest --example guest_run "$@"
