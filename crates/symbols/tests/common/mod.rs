//! Fixtures built with the distribution's compilers, and `llvm-symbolizer` as the oracle.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use leakscope_symbols::{Frame, ModuleFile, Options, Symbolizer, read_build_id};

/// Which apt package has each tool that the tests run.
const PACKAGES: &[(&str, &str)] = &[
    ("gcc", "build-essential"),
    ("g++", "build-essential"),
    ("clang-19", "clang-19"),
    ("clang++-19", "clang-19"),
    ("llvm-symbolizer-19", "llvm-19"),
    ("llvm-dwp-19", "llvm-19"),
    ("nm", "binutils"),
    ("objcopy", "binutils"),
    ("strip", "binutils"),
    ("dwp", "binutils"),
    ("c++filt", "binutils"),
    ("addr2line", "binutils"),
    ("dwz", "dwz"),
    ("xz", "xz-utils"),
    ("eu-strip", "elfutils"),
];

/// Runs a tool in a folder and returns what it printed.
pub fn run(folder: &Path, tool: &str, arguments: &[&str], input: &str) -> String {
    let package = PACKAGES.iter().find(|entry| entry.0 == tool).map_or("?", |entry| entry.1);
    // llvm-dwp never ends on some inputs; a test that hangs says less than one that fails.
    let mut command = Command::new("timeout");
    command.arg("120").arg(tool).args(arguments).current_dir(folder).env_remove("DEBUGINFOD_URLS");
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("timeout: {error}. help: apt-get install coreutils"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || {
        // A tool that reads no input closes the pipe.
        let _ = std::io::Write::write_all(&mut stdin, input.as_bytes());
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_ne!(output.status.code(), Some(127), "{tool}: not found. help: apt-get install {package}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {arguments:?} in {}: {errors}", folder.display());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An empty folder of this test.
pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("symbols-{name}"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Builds the fixture program `app` in a folder: two C++ units and a C unit.
pub fn build(folder: &Path, compiler: &str, flags: &[&str]) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for name in ["shapes.cpp", "main.cpp", "plain.c", "shapes.h"] {
        std::fs::copy(fixtures.join(name), folder.join(name)).unwrap();
    }
    let c_compiler = if compiler == "g++" { "gcc" } else { "clang-19" };
    for (compiler, source, object) in
        [(compiler, "shapes.cpp", "shapes.o"), (compiler, "main.cpp", "main.o"), (c_compiler, "plain.c", "plain.o")]
    {
        run(folder, compiler, &[flags, &["-O2", "-c", source, "-o", object]].concat(), "");
    }
    let link = ["-Wl,--build-id", "main.o", "shapes.o", "plain.o", "-o", "app"];
    run(folder, compiler, &[flags, &["-O2"], &link].concat(), "");
    folder.join("app")
}

/// Addresses all over the functions of a program, every `step` bytes.
pub fn addresses(module: &Path, step: usize) -> Vec<u64> {
    let listing = run(Path::new("/"), "nm", &["--defined-only", "-S", module.to_str().unwrap()], "");
    let mut addresses = Vec::new();
    for line in listing.lines() {
        if let [start, size, "t" | "T" | "W" | "w", _] = line.split_whitespace().collect::<Vec<_>>()[..] {
            let start = u64::from_str_radix(start, 16).unwrap();
            let size = u64::from_str_radix(size, 16).unwrap();
            addresses.extend((start..start + size).step_by(step));
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Symbols that share an address, such as the complete and the base destructor of a class: tools differ in which of
/// them they show.
pub struct Aliases(HashMap<String, Vec<u64>>);

impl Aliases {
    pub fn of(module: &Path) -> Aliases {
        let mut aliases = HashMap::<_, Vec<_>>::new();
        for line in run(Path::new("/"), "nm", &["--defined-only", module.to_str().unwrap()], "").lines() {
            if let [start, _, name] = line.split_whitespace().collect::<Vec<_>>()[..] {
                aliases.entry(name.to_owned()).or_default().push(u64::from_str_radix(start, 16).unwrap());
            }
        }
        Aliases(aliases)
    }

    fn same(&self, a: &str, b: &str) -> bool {
        let starts = |name| self.0.get(name).map_or(&[][..], |starts| &starts[..]);
        a == b || starts(a).iter().any(|start| starts(b).contains(start))
    }

    /// Fails unless our frames are the oracle's.
    pub fn check(&self, address: u64, frames: &[Frame], truth: &[Line]) {
        let mut ours: Vec<Line> = frames.iter().map(line).collect();
        if let (Some(ours), Some(truth)) = (ours.last_mut(), truth.last())
            && self.same(&ours.function, &truth.function)
        {
            ours.function = truth.function.clone();
        }
        assert_eq!(ours, truth, "{address:#x}");
    }
}

/// A frame in the oracle's words: function, path, line, column.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Line {
    pub function: String,
    pub path: String,
    pub line: u32,
    pub column: u32,
}

/// What `llvm-symbolizer` says. `functions` is `linkage` or `short`.
pub fn oracle(module: &Path, functions: &str, addresses: &[u64]) -> Vec<Vec<Line>> {
    let input: String = addresses.iter().map(|address| format!("{address:#x}\n")).collect();
    let object = format!("--obj={}", module.display());
    let style = format!("--functions={functions}");
    let output =
        run(module.parent().unwrap(), "llvm-symbolizer-19", &[&object, &style, "--no-demangle", "--inlines"], &input);
    let answers: Vec<Vec<Line>> = output
        .split("\n\n")
        .filter(|answer| !answer.trim().is_empty())
        .map(|answer| {
            let lines: Vec<&str> = answer.trim_matches('\n').lines().collect();
            lines.chunks(2).map(|pair| decode_line(pair[0], pair[1])).collect()
        })
        .collect();
    assert_eq!(answers.len(), addresses.len(), "the oracle answers each address once");
    answers
}

fn decode_line(function: &str, place: &str) -> Line {
    let mut parts = place.rsplitn(3, ':');
    let column = parts.next().unwrap().parse().unwrap();
    let line = parts.next().unwrap().parse().unwrap();
    // Without a line a column says nothing, and we show none.
    let column = if line == 0 { 0 } else { column };
    let path = parts.next().unwrap().replace("??", "");
    Line { function: function.replace("??", ""), path: normal(&path), line, column }
}

/// A path without `.` and `..`: tools differ in whether they fold them.
pub fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "." => (),
            ".." if parts.len() > 1 => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

/// Our frame in the oracle's words.
fn line(frame: &Frame) -> Line {
    let file = frame.file.clone().unwrap_or_default();
    let path = frame.directory.as_ref().map_or(file.clone(), |directory| format!("{directory}/{file}"));
    Line {
        function: frame.linkage_name.clone().unwrap_or_else(|| frame.function.clone()),
        path: normal(&path),
        line: frame.line.unwrap_or(0),
        column: frame.column.unwrap_or(0),
    }
}

/// Options that look below one debug directory and ask no server.
pub fn local(debug_dir: &Path) -> Options {
    Options { debug_dirs: vec![debug_dir.to_path_buf()], debuginfod: None, demangle: true }
}

/// A module as a recorder saw it.
pub fn module(path: &Path) -> ModuleFile {
    ModuleFile { path: path.to_path_buf(), build_id: read_build_id(path) }
}

/// Resolves with fresh options.
pub fn resolve(
    options: Options,
    module: &ModuleFile,
    addresses: &[u64],
) -> (Vec<Vec<Frame>>, leakscope_symbols::Source) {
    let mut symbolizer = Symbolizer::new(options);
    let frames = symbolizer.resolve(module, addresses, &mut |_| ());
    let source = symbolizer.source(module);
    (frames, source)
}
