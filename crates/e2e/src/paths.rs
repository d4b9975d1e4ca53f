//! Where things lie: the repository, its target directory, the binary under test, the cache of foreign test suites.

use std::path::PathBuf;

/// The repository's top folder.
pub fn repo_root() -> PathBuf {
    // Two levels above this crate's manifest; known at compile time because these tools never leave the clone.
    let crate_dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    crate_dir.ancestors().nth(2).expect("crates/e2e lies two levels below the repository").to_path_buf()
}

/// Cargo's target folder: `CARGO_TARGET_DIR`, else `target` in the repository.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => repo_root().join(dir),
        None => repo_root().join("target"),
    }
}

/// The `leakscope` under test: `LEAKSCOPE_BIN`, else the release build.
pub fn leakscope_bin() -> PathBuf {
    match std::env::var_os("LEAKSCOPE_BIN") {
        Some(path) => PathBuf::from(path),
        None => target_dir().join("release/leakscope"),
    }
}

/// The folder of fixture programs.
pub fn fixtures_dir() -> PathBuf {
    repo_root().join("fixtures")
}

/// The cache of foreign test suites: `LEAKSCOPE_CONFORMANCE_CACHE`, else `/var/cache/leakscope-conformance`.
pub fn conformance_cache() -> PathBuf {
    match std::env::var_os("LEAKSCOPE_CONFORMANCE_CACHE") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from("/var/cache/leakscope-conformance"),
    }
}
