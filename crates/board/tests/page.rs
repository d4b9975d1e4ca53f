//! The page in a headless Chromium; what is clicked, typed and read stands in `web/test/page.test.mjs`, and of a collector's
//! page in `web/test/machines.test.mjs`.

mod made;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use leakscope_board::{PageOptions, Server, Shared, serve, serve_many};

fn options() -> PageOptions {
    PageOptions { listen: "127.0.0.1:0".parse().unwrap(), token: None, tls: None, behind_proxy: false }
}

/// Runs a file of tests against a page.
fn browse(file: &str, server: &Server) {
    let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("web");
    let packages = web.join("../../report/web/node_modules/playwright-core");
    assert!(packages.exists(), "the page's packages are not installed; next: cargo xtask setup");
    // Kept for a look at the screenshots.
    let shots = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("board");
    std::fs::create_dir_all(&shots).unwrap();
    let output = Command::new("node")
        .arg("--test")
        .arg(web.join("test").join(file))
        .env("LEAKSCOPE_PAGE", format!("http://{}/", server.address))
        .env("LEAKSCOPE_SHOTS", &shots)
        .env("LEAKSCOPE_HOSTILE", made::HOSTILE)
        .output()
        .expect("node is installed");
    let words = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{words}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(words.contains("fail 0") && !words.contains("# pass 0"), "{words}");
}

#[test]
fn the_page_of_many_machines_works_in_a_browser() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve_many(&options(), Arc::new(made::Fleet::new(folder.path()))).unwrap();
    browse("machines.test.mjs", &server);
}

#[test]
fn the_page_works_in_a_browser() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.sqlite");
    made::history(&path);
    let shared = Shared::default();
    shared.publish(made::board());
    let server = serve(&options(), shared.clone(), path).unwrap();
    // The browser sees the board change: it asks each second.
    let mut live = made::board();
    live.interval_seconds = 1;
    shared.publish(live.clone());
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while asked.recv_timeout(std::time::Duration::from_millis(500))
                == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                live.passes += 1;
                live.at += 1;
                live.targets[3].memory = Some(96e6 + live.passes as f64);
                shared.publish(live.clone());
            }
        });
        // When a test fails, the changes end as well: its sender is gone.
        let _ask = ask;
        browse("page.test.mjs", &server);
    });
}
