//! Any text as a file of suppressions.
#![no_main]

use leakscope_findings::Suppressions;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let mut rules = Suppressions::new();
    let is_read = rules.add("fuzz.supp", text).is_ok();
    assert!(is_read || rules.rules().is_empty(), "a file with a mistake adds no rule");
});
