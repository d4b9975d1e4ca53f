//! 64 threads that allocate, fork and load libraries on the run-time library of `leakscope asan`: nothing is reported,
//! nothing stands still. `LEAKSCOPE_E2E_FULL=1`: for ten minutes.

use std::time::Duration;

use crate::library::{Library, is_full};
use leakscope_e2e::{Ending, Run, fixtures_dir};

#[test]
fn threads_that_fork_and_load_libraries_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let fixtures = fixtures_dir().join("asan");
    let (program, plugin) = (folder.path().join("stress"), folder.path().join("plugin.so"));
    for (source, out, extra) in
        [("stress.c", &program, &["-pthread"][..]), ("stress_plugin.c", &plugin, &["-shared", "-fPIC"])]
    {
        let run = Run::new("gcc").args(["-g", "-O1", "-fsanitize=address"]).args(extra).arg("-o").arg(out);
        let built = run.arg(fixtures.join(source)).finish().unwrap();
        assert_eq!(built.ending, Ending::Exit(0), "{}", built.stderr);
    }
    let seconds = if is_full() { 600 } else { 15 };
    let run = Run::new(&program).arg(seconds.to_string()).arg(&plugin).env("LD_LIBRARY_PATH", Library::ours().folder());
    let finished = run.limit(Duration::from_secs(seconds + 120)).finish().unwrap();
    let said = String::from_utf8_lossy(&finished.stdout);
    assert_eq!((finished.ending, finished.stderr.as_str()), (Ending::Exit(0), ""), "{said}");
    assert!(!said.contains(" 0 "), "every kind of work was done: {said}");
    println!("{said}");
}
