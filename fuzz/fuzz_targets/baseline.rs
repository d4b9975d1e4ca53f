//! Any text as a baseline; what is read is written and read again.
#![no_main]

use leakscope_findings::baseline::Baseline;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(baseline) = Baseline::parse("fuzz.baseline", text) else { return };
    let written = baseline.text();
    let again = Baseline::parse("fuzz.baseline", &written).expect("our own text");
    assert_eq!(again.text(), written);
});
