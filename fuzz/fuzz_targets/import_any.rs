//! Any bytes, compressed or not, whose format is found by their contents.
#![no_main]

use leakscope_import::{NoNames, import};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = import(Box::new(std::io::Cursor::new(bytes)), &mut NoNames);
});
