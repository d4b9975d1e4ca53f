//! What the fuzz targets share.

use std::io::Cursor;

use leakscope_findings::analysis::Options;
use leakscope_findings::{Recording, Suppressions, analyse, decode, encode};
use leakscope_import::{Format, NoNames, import_as};

/// Reads bytes as a format; analyses what was read, and holds it against its own container.
pub fn import_and_analyse(format: Format, bytes: &[u8]) {
    let imported = import_as(format, &mut Cursor::new(bytes), &mut NoNames).expect("a slice is always readable");
    for process in &imported.processes {
        analyse("0", process, &Options::default(), &Suppressions::new());
    }
    let recording = Recording { processes: imported.processes, ..Recording::default() };
    if !recording.processes.is_empty() {
        let (again, problems) = decode(&encode(&recording)).expect("our own bytes");
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(again, recording);
    }
}
