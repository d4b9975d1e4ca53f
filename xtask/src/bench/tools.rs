//! The tools that are measured side by side, and how each of them runs a program.

use std::path::{Path, PathBuf};

use leakscope_e2e::{Run, leakscope_bin};

use crate::step::{first_line, on_path};

/// One column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tool {
    /// The program alone: the pair of every measurement.
    Native,
    /// `leakscope run`.
    Leakscope,
    /// `leakscope run --sample`.
    Sampled,
    /// heaptrack, uninterpreted.
    HeaptrackRaw,
    /// heaptrack as it is by default.
    Heaptrack,
    /// gcc's LeakSanitizer, preloaded.
    Lsan,
    /// Memcheck with a full leak check.
    Memcheck,
}

/// Mean distance between two samples of `--sample`; the default of other sampling profilers.
const SAMPLE_BYTES: &str = "524288";
/// heaptrack's default mode can take all memory of the machine.
const HEAPTRACK_LIMIT_KIB: &str = "8388608";

impl Tool {
    /// Every column in the table's order.
    pub const ALL: [Tool; 7] =
        [Tool::Native, Tool::Leakscope, Tool::Sampled, Tool::HeaptrackRaw, Tool::Heaptrack, Tool::Lsan, Tool::Memcheck];

    /// The column's head.
    pub fn title(self) -> &'static str {
        match self {
            Tool::Native => "native",
            Tool::Leakscope => "leakscope",
            Tool::Sampled => "leakscope --sample",
            Tool::HeaptrackRaw => "heaptrack --raw",
            Tool::Heaptrack => "heaptrack",
            Tool::Lsan => "LSan (preloaded)",
            Tool::Memcheck => "Memcheck",
        }
    }

    /// Whether it takes so long that one run has to do.
    pub fn is_slow(self) -> bool {
        matches!(self, Tool::Heaptrack | Tool::Memcheck)
    }

    /// Whether it is there to be measured.
    pub fn is_installed(self) -> bool {
        match self {
            Tool::Native => true,
            Tool::Leakscope | Tool::Sampled => leakscope_bin().exists(),
            Tool::HeaptrackRaw | Tool::Heaptrack => on_path("heaptrack"),
            Tool::Lsan => liblsan().is_some(),
            Tool::Memcheck => on_path("valgrind"),
        }
    }

    /// What identifies the measured version.
    pub fn version(self) -> String {
        match self {
            Tool::Native => first_line(&["gcc", "--version"]),
            Tool::Leakscope | Tool::Sampled => first_line(&[&leakscope_bin().to_string_lossy(), "--version"]),
            Tool::HeaptrackRaw | Tool::Heaptrack => first_line(&["heaptrack", "--version"]),
            Tool::Lsan => format!("liblsan of {}", first_line(&["gcc", "--version"])),
            Tool::Memcheck => first_line(&["valgrind", "--version"]),
        }
    }

    /// The command line, for the page that shows the numbers.
    pub fn command(self) -> String {
        match self {
            Tool::Native => "PROGRAM".to_owned(),
            Tool::Leakscope => "leakscope run -o FILE -- PROGRAM".to_owned(),
            Tool::Sampled => format!("leakscope run --sample {SAMPLE_BYTES} -o FILE -- PROGRAM"),
            Tool::HeaptrackRaw => "heaptrack --raw -o FILE PROGRAM".to_owned(),
            Tool::Heaptrack => format!("heaptrack -o FILE PROGRAM, under ulimit -v {HEAPTRACK_LIMIT_KIB}"),
            Tool::Lsan => "LD_PRELOAD=liblsan.so LSAN_OPTIONS=detect_leaks=1:exitcode=0 PROGRAM".to_owned(),
            Tool::Memcheck => "valgrind --leak-check=full --log-file=FILE PROGRAM".to_owned(),
        }
    }

    /// A run of this program under the tool; what the tool writes goes into `scratch`.
    pub fn start(self, program: &Path, scratch: &Path) -> Run {
        let file = scratch.join("report");
        match self {
            Tool::Native => Run::new(program),
            Tool::Leakscope => Run::new(leakscope_bin()).args(["run", "-o"]).arg(file).arg("--").arg(program),
            Tool::Sampled => {
                Run::new(leakscope_bin()).args(["run", "--sample", SAMPLE_BYTES, "-o"]).arg(file).arg("--").arg(program)
            }
            Tool::HeaptrackRaw => Run::new("heaptrack").args(["--raw", "-o"]).arg(file).arg(program),
            Tool::Heaptrack => Run::new("sh")
                .args(["-c", "ulimit -v \"$1\"; shift; exec heaptrack -o \"$@\"", "sh", HEAPTRACK_LIMIT_KIB])
                .arg(file)
                .arg(program),
            Tool::Lsan => Run::new(program)
                .env("LD_PRELOAD", liblsan().unwrap_or_default())
                .env("LSAN_OPTIONS", "detect_leaks=1:exitcode=0"),
            Tool::Memcheck => {
                Run::new("valgrind").args(["--leak-check=full", &format!("--log-file={}", file.display())]).arg(program)
            }
        }
    }
}

/// The run-time library of the system's gcc.
fn liblsan() -> Option<PathBuf> {
    let line = first_line(&["gcc", "-print-file-name=liblsan.so"]);
    let path = PathBuf::from(line);
    path.is_absolute().then_some(path).filter(|path| path.exists())
}
