//! Any bytes read as a `.leak` file; what can be read is analysed, and written and read again.
#![no_main]

use leakscope_findings::analysis::Options;
use leakscope_findings::{Suppressions, analyse, decode, encode};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok((recording, _)) = decode(bytes) else { return };
    for process in &recording.processes {
        analyse("0", process, &Options::default(), &Suppressions::new());
    }
    let (again, problems) = decode(&encode(&recording)).expect("our own bytes");
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(again, recording);
});
