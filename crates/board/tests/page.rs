//! The page in a headless Chromium; what is clicked, typed and read stands in `web/test/page.test.mjs`.

mod made;

use std::path::{Path, PathBuf};
use std::process::Command;

use leakscope_board::{PageOptions, Shared, serve};

#[test]
fn the_page_works_in_a_browser() {
    let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("web");
    let packages = web.join("../../report/web/node_modules/playwright-core");
    assert!(packages.exists(), "the page's packages are not installed; next: cargo xtask setup");
    // Kept for a look at the screenshots.
    let shots = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("board");
    std::fs::create_dir_all(&shots).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.sqlite");
    made::history(&path);
    let shared = Shared::default();
    shared.publish(made::board());
    let options = PageOptions { listen: "127.0.0.1:0".parse().unwrap(), token: None, tls: None, behind_proxy: false };
    let server = serve(&options, shared.clone(), path).unwrap();
    // The browser sees the board change: it asks each second.
    let mut live = made::board();
    live.interval_seconds = 1;
    shared.publish(live.clone());
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    let changer = std::thread::spawn(move || {
        while asked.recv_timeout(std::time::Duration::from_millis(500)).is_err() {
            live.passes += 1;
            live.at += 1;
            live.targets[3].memory = Some(96e6 + live.passes as f64);
            shared.publish(live.clone());
        }
    });
    let output = Command::new("node")
        .arg("--test")
        .arg(web.join("test/page.test.mjs"))
        .env("LEAKSCOPE_PAGE", format!("http://{}/", server.address))
        .env("LEAKSCOPE_SHOTS", &shots)
        .env("LEAKSCOPE_HOSTILE", made::HOSTILE)
        .output()
        .expect("node is installed");
    ask.send(()).unwrap();
    changer.join().unwrap();
    let words = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{words}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(words.contains("fail 0") && !words.contains("# pass 0"), "{words}");
}
