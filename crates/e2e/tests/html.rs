//! The HTML page of real programs, used in a headless Chromium.
//!
//! What is clicked, typed and read stands in `crates/report/web/test/page.test.mjs`; this makes the pages and starts it.
//! It needs Node.js, `npm ci` in `crates/report/web`, and the package `chromium`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use leakscope_e2e::{Ending, Finished, Run, Tool, fixtures_dir, leakscope_bin, repo_root};

const LIMIT: Duration = Duration::from_secs(120);

fn finish(run: Run) -> Finished {
    let finished = run.clone().limit(LIMIT).finish().unwrap();
    assert_eq!(finished.ending, Ending::Exit(0), "{}\n{}", run.shown(), finished.stderr);
    finished
}

/// Records a program and writes its page, and beside it what the JSON report says.
fn page(dir: &Path, name: &str, program: &[&str]) {
    let file = |ending: &str| dir.join(format!("{name}.{ending}"));
    let run = Run::new(leakscope_bin()).args(["run", "-q", "-o"]).arg(file("leak")).arg("--").args(program);
    finish(run.dir(repo_root()));
    for ending in ["html", "json"] {
        let report = Run::new(leakscope_bin()).args(["report", "--show-leak-kinds=all", "-o"]).arg(file(ending));
        finish(report.arg(file("leak")).dir(repo_root()));
    }
}

/// A program whose function is called what no compiler would call it.
fn hostile(dir: &Path) -> PathBuf {
    let (source, object, program) = (dir.join("h.c"), dir.join("h.o"), dir.join("hostile"));
    std::fs::write(
        &source,
        "#include <stdlib.h>\n__attribute__((noinline)) void *leak(void) { return malloc(77); }\n\
         int main(void) { leak(); return 0; }\n",
    )
    .unwrap();
    finish(Run::new("gcc").args(["-O1", "-fno-optimize-sibling-calls", "-c", "-o"]).arg(&object).arg(&source));
    let name = "leak=</script><img src=x onerror=\"pwned=1\">\u{1b}[31m\u{202e}";
    finish(Run::new("objcopy").args(["--redefine-sym", name]).arg(&object));
    finish(Run::new("gcc").arg("-o").arg(&program).arg(&object));
    program
}

#[test]
fn the_page_works_in_a_browser() {
    if Tool::from_env().unwrap() != Tool::Leakscope {
        return;
    }
    let web = repo_root().join("crates/report/web");
    assert!(
        web.join("node_modules/playwright-core").exists(),
        "{}: its packages are not installed; next: cargo xtask setup, or npm ci there",
        web.display()
    );
    // Kept for a look at the screenshots.
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("pages");
    std::fs::create_dir_all(&dir).unwrap();
    let orders = dir.join("orders");
    let source = fixtures_dir().join("demo/orders.cpp");
    finish(Run::new("g++").args(["-g", "-O1", "-o"]).arg(&orders).arg(&source));
    page(&dir, "orders", &[orders.to_str().unwrap()]);
    let compiler = String::from_utf8(finish(Run::new("gcc").arg("-print-prog-name=cc1plus")).stdout).unwrap();
    let preprocessed = dir.join("orders.ii");
    finish(Run::new("g++").args(["-E", "-o"]).arg(&preprocessed).arg(&source));
    let words = [compiler.trim(), "-quiet", "-O2", preprocessed.to_str().unwrap(), "-o", "/dev/null"];
    page(&dir, "compiler", &words);
    page(&dir, "hostile", &[hostile(&dir).to_str().unwrap()]);
    let test = Run::new("node").arg("--test").arg(web.join("test/page.test.mjs")).env("LEAKSCOPE_PAGES", &dir);
    let finished = test.dir(&web).limit(Duration::from_secs(300)).finish().unwrap();
    let words = String::from_utf8_lossy(&finished.stdout);
    assert_eq!(finished.ending, Ending::Exit(0), "{words}\n{}", finished.stderr);
    assert!(words.contains("fail 0") && !words.contains("# pass 0"), "{words}");
}

/// Names that would be orders to a terminal, a browser or a CI server, in a real program's symbols and files.
#[test]
fn a_page_without_a_browser_has_no_foreign_markup() {
    if Tool::from_env().unwrap() != Tool::Leakscope {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    page(dir.path(), "hostile", &[hostile(dir.path()).to_str().unwrap()]);
    let page = std::fs::read_to_string(dir.path().join("hostile.html")).unwrap();
    assert!(!page.contains("<img"), "markup out of a symbol");
    assert_eq!(page.matches("</script>").count(), 2, "the data and the program of the page");
    assert!(!page.contains('\u{202e}') && !page.contains('\u{1b}'));
    assert!(page.contains("onerror"), "the name is there as data");
    assert!(!page.contains("src=\"") && !page.contains("href=\"http"), "a page needs no other file");
}
