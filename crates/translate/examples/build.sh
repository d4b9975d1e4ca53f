#!/bin/sh
# Builds examples/translate as a static executable that stands out of the target's way; prints where it is.
set -e
flags="-Ctarget-feature=+crt-static -Crelocation-model=static -Clink-arg=-Wl,--image-base=0x30000000 -Clink-arg=-no-pie"
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="$flags"
cargo build --release --package leakscope-translate --example translate --target x86_64-unknown-linux-gnu "$@"
echo "${CARGO_TARGET_DIR:-target}/x86_64-unknown-linux-gnu/release/examples/translate"
