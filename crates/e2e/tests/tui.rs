//! `leakscope report --tui` with real keys in a real terminal (a pty), its screen read by a terminal emulator.

mod screen;

use leakscope_e2e::{Ending, Run, Tool, fixtures_dir, leakscope_bin};
use screen::Screen;

#[test]
fn the_view_takes_real_keys() {
    if Tool::from_env().unwrap() != Tool::Leakscope {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (program, recording) = (dir.path().join("orders"), dir.path().join("orders.leak"));
    let source = fixtures_dir().join("demo/orders.cpp");
    for run in [
        Run::new("g++").args(["-g", "-O1", "-o"]).arg(&program).arg(source),
        Run::new(leakscope_bin()).args(["run", "-q", "-o"]).arg(&recording).arg(&program),
    ] {
        assert_eq!(run.finish().unwrap().ending, Ending::Exit(0), "{}", run.shown());
    }
    let recording = recording.to_str().unwrap();
    let mut screen = Screen::start(&["report", "--tui", recording]);
    screen.until_shown("read_orders");
    assert!(screen.parser.screen().alternate_screen());
    // The way to main's callees is open at the start; the third row is the largest of them.
    screen.press("\x1b[B\x1b[B");
    screen.until_shown("Order *order = new Order;");
    screen.press("/print_t\r");
    screen.until_shown("fixtures/demo/orders.cpp:27");
    // Right opens it: now its callee is there.
    screen.press("\x1b[C");
    screen.until_shown("operator new[](unsigned long)");
    screen.press("\x1b[17~");
    screen.until("F6 shows live bytes", |screen| {
        let row = screen.contents().lines().next().unwrap_or_default().to_owned();
        let at = row.find(" live ").map_or(0, |at| at as u16 + 1);
        screen.cell(0, at).is_some_and(|cell| cell.inverse())
    });
    screen.press("?");
    screen.until_shown("any key goes back");
    screen.press("x");
    screen.until("the help is gone", |screen| !screen.contents().contains("any key goes back"));
    screen.press("q");
    screen.until("the terminal is as it was", |screen| !screen.alternate_screen() && !screen.hide_cursor());
    assert!(screen.child.wait().unwrap().success());
}

#[test]
fn without_a_terminal_it_says_so() {
    if Tool::from_env().unwrap() != Tool::Leakscope {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let recording = dir.path().join("true.leak");
    Run::new(leakscope_bin()).args(["run", "-q", "-o"]).arg(&recording).arg("true").finish().unwrap();
    let finished = Run::new(leakscope_bin()).args(["report", "--tui"]).arg(&recording).finish().unwrap();
    assert_eq!(finished.ending, Ending::Exit(2));
    assert!(finished.stderr.contains("must be a terminal"), "{}", finished.stderr);
}
