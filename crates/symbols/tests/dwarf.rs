//! Frames against `llvm-symbolizer`: compilers, DWARF versions, split DWARF and dwz.

mod common;

use std::path::Path;

use common::{Aliases, addresses, build, folder, local, module, oracle, resolve, run};
use leakscope_symbols::{ModuleFile, Source};

/// Resolves a module and compares every frame of every address with the oracle's answer for `reference`, which has
/// the same code at the same addresses.
fn compare(module: &ModuleFile, reference: &Path, debug_dir: &Path, expected: Source) {
    let addresses = addresses(reference, 5);
    assert!(addresses.len() > 300, "{} addresses", addresses.len());
    let (frames, source) = resolve(local(debug_dir), module, &addresses);
    assert_eq!(source, expected);
    let truth = oracle(reference, "linkage", &addresses);
    let short = oracle(reference, "short", &addresses);
    let aliases = Aliases::of(reference);
    let mut inlined = 0;
    for (index, address) in addresses.iter().enumerate() {
        aliases.check(*address, &frames[index], &truth[index]);
        for (frame, short) in frames[index].iter().zip(&short[index]).rev().skip(1) {
            assert!(frame.inlined);
            assert_eq!(frame.function, short.function, "{address:#x}");
            inlined += 1;
        }
        assert!(!frames[index].last().unwrap().inlined);
    }
    assert!(inlined > 100, "{inlined} inlined frames");
}

fn compare_program(app: &Path) {
    compare(&module(app), app, Path::new("/nonexistent"), Source::Dwarf);
}

#[test]
fn gcc_dwarf_5() {
    compare_program(&build(&folder("gcc5"), "g++", &["-gdwarf-5"]));
}

#[test]
fn gcc_dwarf_4() {
    compare_program(&build(&folder("gcc4"), "g++", &["-gdwarf-4"]));
}

#[test]
fn clang_dwarf_5() {
    compare_program(&build(&folder("clang5"), "clang++-19", &["-gdwarf-5"]));
}

#[test]
fn clang_dwarf_4() {
    compare_program(&build(&folder("clang4"), "clang++-19", &["-gdwarf-4"]));
}

#[test]
fn link_time_optimisation() {
    compare_program(&build(&folder("lto"), "g++", &["-g", "-flto", "-fno-fat-lto-objects"]));
}

#[test]
fn compressed_sections() {
    let folder = folder("compressed");
    let app = build(&folder, "g++", &["-g"]);
    for kind in ["zlib", "zlib-gnu", "zstd"] {
        run(&folder, "objcopy", &[&format!("--compress-debug-sections={kind}"), "app", kind], "");
        compare(&module(&folder.join(kind)), &app, Path::new("/nonexistent"), Source::Dwarf);
    }
}

#[test]
fn split_units() {
    for (name, compiler, version) in
        [("gcc4", "g++", "-gdwarf-4"), ("gcc5", "g++", "-gdwarf-5"), ("clang5", "clang++-19", "-gdwarf-5")]
    {
        let folder = folder(&format!("split-{name}"));
        compare_program(&build(&folder, compiler, &[version, "-gsplit-dwarf"]));
    }
}

/// Not gcc with DWARF 5: on its units `dwp` of binutils 2.40 crashes and `llvm-dwp` of LLVM 19 does not end.
#[test]
fn split_units_in_a_package() {
    for (name, compiler, version, packer) in
        [("gcc4", "g++", "-gdwarf-4", "dwp"), ("clang5", "clang++-19", "-gdwarf-5", "llvm-dwp-19")]
    {
        let folder = folder(&format!("package-{name}"));
        let app = build(&folder, compiler, &[version, "-gsplit-dwarf"]);
        run(&folder, packer, &["-e", "app", "-o", "app.dwp"], "");
        for unit in ["main.dwo", "shapes.dwo", "plain.dwo"] {
            std::fs::remove_file(folder.join(unit)).unwrap();
        }
        compare_program(&app);
    }
}

#[test]
fn a_split_unit_of_another_build_is_not_used() {
    let folder = folder("split-stale");
    let app = build(&folder, "g++", &["-g", "-gsplit-dwarf"]);
    std::fs::copy(folder.join("plain.dwo"), folder.join("main.dwo")).unwrap();
    let main = run(&folder, "nm", &["app"], "").lines().find(|line| line.ends_with(" T main")).unwrap().to_owned();
    let address = u64::from_str_radix(main.split(' ').next().unwrap(), 16).unwrap();
    let (frames, _) = resolve(local(&folder), &module(&app), &[address]);
    assert_eq!(frames[0].len(), 1);
    assert_eq!(frames[0][0].function, "main");
}

#[test]
fn dwz_shares_units_between_files() {
    let folder = folder("dwz");
    let app = build(&folder, "g++", &["-gdwarf-5"]);
    std::fs::copy(&app, folder.join("one")).unwrap();
    // dwz shares only what pays: a second program with the same headers.
    std::fs::copy(&app, folder.join("two")).unwrap();
    run(&folder, "dwz", &["-m", "shared.debug", "-M", "shared.debug", "one", "two"], "");
    let one = std::fs::read(folder.join("one")).unwrap();
    assert!(one.windows(17).any(|bytes| bytes == b".gnu_debugaltlink"), "dwz made no shared file");
    compare(&module(&folder.join("one")), &app, Path::new("/nonexistent"), Source::Dwarf);
}
