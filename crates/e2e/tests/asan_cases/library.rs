//! Run-time libraries under the names that programs ask for.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use leakscope_e2e::{Ending, Run, leakscope_bin};
use tempfile::TempDir;

/// Names that programs of clang and of gcc ask for.
const SONAMES: [&str; 2] = ["libclang_rt.asan-x86_64.so", "libasan.so.8"];

/// Whether everything is to be run.
pub fn is_full() -> bool {
    std::env::var_os("LEAKSCOPE_E2E_FULL").is_some()
}

/// A library in a folder of its own.
pub struct Library {
    name: &'static str,
    folder: PathBuf,
    _links: Option<TempDir>,
}

impl Library {
    /// What it is called in scores.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What `LD_LIBRARY_PATH` is to be.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ours: where `leakscope asan run` puts it.
    pub fn ours() -> Library {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("tell.c");
        let program = folder.path().join("tell");
        let text = "#include <stdio.h>\n#include <stdlib.h>\nint main() { puts(getenv(\"LD_LIBRARY_PATH\")); }\n";
        std::fs::write(&source, text).unwrap();
        let built = Run::new("gcc").args(["-fsanitize=address", "-o"]).arg(&program).arg(&source).finish().unwrap();
        assert_eq!(built.ending, Ending::Exit(0), "{}", built.stderr);
        let told = Run::new(leakscope_bin()).args(["asan", "run"]).arg(&program).finish().unwrap();
        assert_eq!(told.ending, Ending::Exit(0), "{}", told.stderr);
        let paths = String::from_utf8(told.stdout).unwrap();
        let folder = PathBuf::from(paths.trim().split(':').next().unwrap());
        assert!(folder.join(SONAMES[1]).exists(), "{} holds no library", folder.display());
        Library { name: "leakscope", folder, _links: None }
    }

    /// The compilers' own.
    pub fn stock() -> Vec<Library> {
        let of = |name, compiler: &str, file: &str| {
            let told = Run::new(compiler).arg(format!("-print-file-name={file}")).finish().unwrap();
            let path = PathBuf::from(String::from_utf8(told.stdout).unwrap().trim()).canonicalize().unwrap();
            let links = tempfile::tempdir().unwrap();
            for soname in SONAMES {
                symlink(&path, links.path().join(soname)).unwrap();
            }
            Library { name, folder: links.path().to_owned(), _links: Some(links) }
        };
        vec![of("clang 19", "clang-19", SONAMES[0]), of("gcc 12", "gcc", "libasan.so")]
    }
}
