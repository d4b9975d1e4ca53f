//! Variables against the program itself, which prints where each of its parts lies: two compilers, DWARF 4 and 5, and a
//! separate debug file.

mod common;

use std::path::{Path, PathBuf};

use common::{folder, local, module, run};
use leakscope_symbols::{FrameState, ModuleFile, Symbolizer, Variable};

fn build(name: &str, compiler: &str, flags: &[&str]) -> PathBuf {
    let folder = folder(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/variables.cpp");
    let app = folder.join("app");
    let fixed =
        ["-no-pie", "-w", "-O0", "-fno-omit-frame-pointer", "-o", app.to_str().unwrap(), source.to_str().unwrap()];
    run(&folder, compiler, &[&fixed[..], flags].concat(), "");
    app
}

/// The expression that a variable is, without scopes.
fn expression(variable: &Variable) -> String {
    format!("{}{}", variable.name, variable.part)
}

fn hex(word: &str) -> u64 {
    u64::from_str_radix(word, 16).unwrap()
}

fn compare(app: &Path, file: &ModuleFile, debug_dir: &Path) {
    let printed = run(app.parent().unwrap(), app.to_str().unwrap(), &[], "");
    let mut symbolizer = Symbolizer::new(local(debug_dir));
    let (mut globals, mut locals) = (0, 0);
    for line in printed.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let address = hex(words[2]);
        let wanted = words[1].rsplit("::").next().unwrap();
        let found = if words[0] == "global" {
            globals += 1;
            symbolizer.global_variable(file, address)
        } else {
            locals += 1;
            let (pc, cfa, frame) = (hex(words[3]), hex(words[4]), hex(words[5]));
            let state = FrameState { cfa, frame_pointer: frame, stack_pointer: frame - 4096 };
            let found = symbolizer.local_variable(file, pc - 1, state, 0, address);
            // What is asked of the whole frame holds the same variable.
            let extent = found.as_ref().map(|variable| variable.extent).unwrap();
            let relative = |at: u64| at.wrapping_sub(cfa) as i64;
            let ranges = symbolizer.frame_variables(file, pc - 1, state, 0);
            assert!(ranges.contains(&(relative(extent.0), relative(extent.1))), "{line}: {ranges:?}");
            found
        };
        let found = found.unwrap_or_else(|| panic!("nothing at {line}"));
        assert_eq!(expression(&found), wanted, "{line}: {found:?}");
        assert_eq!(found.offset_in_part, 0, "{line}");
        assert!(found.extent.0 <= address && address < found.extent.1);
        assert_eq!(found.file.as_deref(), Some("variables.cpp"));
        assert!(found.line.is_some_and(|line| line > 5));
    }
    assert_eq!((globals, locals), (8, 6));
    assert_eq!(symbolizer.global_variable(file, 1), None);
}

#[test]
fn gcc_dwarf_5() {
    let app = build("variables-gcc5", "g++", &["-gdwarf-5"]);
    compare(&app, &module(&app), Path::new("/nonexistent"));
}

#[test]
fn gcc_dwarf_4() {
    let app = build("variables-gcc4", "g++", &["-gdwarf-4"]);
    compare(&app, &module(&app), Path::new("/nonexistent"));
}

#[test]
fn clang() {
    let app = build("variables-clang", "clang++-19", &["-g"]);
    compare(&app, &module(&app), Path::new("/nonexistent"));
}

/// Debug information in a file of its own, and the symbol table with it.
#[test]
fn separate_file() {
    let app = build("variables-separate", "g++", &["-g"]);
    let folder = app.parent().unwrap();
    run(folder, "objcopy", &["--only-keep-debug", "app", "app.debug"], "");
    run(folder, "objcopy", &["--strip-all", "--add-gnu-debuglink=app.debug", "app"], "");
    compare(&app, &module(&app), folder);
    let mut symbolizer = Symbolizer::new(local(folder));
    let printed = run(folder, app.to_str().unwrap(), &[], "");
    let line = printed.lines().find(|line| line.contains("forest[0].halves.high")).unwrap();
    let address = hex(line.rsplit(' ').next().unwrap());
    let (name, offset) = symbolizer.data_symbol(&module(&app), address).unwrap();
    let (start, end) = symbolizer.data_extent(&module(&app), address).unwrap();
    assert_eq!((name.as_str(), address - start), ("forest", offset));
    assert!(end > address);
    assert_eq!(symbolizer.section(&module(&app), address).as_deref(), Some(".bss"));
}
