//! Any bytes read as `Format::ValgrindXml`, and analysed.
#![no_main]

use leakscope_fuzz::import_and_analyse;
use leakscope_import::Format;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| import_and_analyse(Format::ValgrindXml, bytes));
