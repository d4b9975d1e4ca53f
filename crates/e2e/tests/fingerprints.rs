//! Fingerprints of the same leaks in other builds of the same sources: a part of `cargo xtask bench fingerprints`.

use leakscope_e2e::builds::{Build, Kept, collisions, compare, findings};
use leakscope_e2e::{Fixture, Tool, fixtures_dir};

/// Chains and trees, every allocation function, threads, containers, operators, inlining.
const PROGRAMS: [&str; 6] = [
    "c/leak_kinds.c",
    "c/alloc_functions.c",
    "c/threads.c",
    "cpp/containers.cpp",
    "cpp/operators.cpp",
    "demo/orders.cpp",
];
/// What a finding must keep through another build.
const LEAST_SHARE: f64 = 0.95;

#[test]
fn fingerprints_last_through_other_builds() {
    if Tool::from_env().unwrap() != Tool::Leakscope {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Where the release has no clang, gcc alone is asked.
    let others: Vec<Build> =
        [Build::OPTIMISED, Build::ALL, Build::CLANG].into_iter().filter(Build::is_possible).collect();
    assert!(others.len() >= 2, "gcc is there");
    let mut kept = vec![Kept::default(); others.len()];
    for program in PROGRAMS {
        let fixture = Fixture::read(&fixtures_dir().join(program)).unwrap();
        let before = findings(&fixture, &Build::PLAIN, dir.path()).unwrap();
        assert!(!before.is_empty(), "{program} leaks");
        assert_eq!(collisions(&before), Vec::<String>::new(), "{program}");
        for (build, kept) in others.iter().zip(&mut kept) {
            let after = findings(&fixture, build, dir.path()).unwrap();
            assert_eq!(collisions(&after), Vec::<String>::new(), "{program}, {}", build.name);
            kept.add(compare(&before, &after));
        }
    }
    for (build, kept) in others.iter().zip(&kept) {
        println!("{}: {} of {} with the same path", build.name, kept.kept, kept.same_path);
        // A path that no build shares would make the share mean nothing.
        assert!(kept.same_path * 2 > kept.findings, "{}: {kept:?}", build.name);
        assert!(kept.share() >= LEAST_SHARE, "{}: {kept:?}", build.name);
    }
}
