//! `leakscope report --tui` with real keys in a real terminal (a pty), its screen read by a terminal emulator.

use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use leakscope_e2e::{Ending, Run, Tool, fixtures_dir, leakscope_bin, repo_root};
use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

/// A step that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(20);

/// A program in a terminal.
struct Screen {
    child: Box<dyn Child + Send + Sync>,
    keys: Box<dyn Write + Send>,
    output: Receiver<Vec<u8>>,
    parser: vt100::Parser,
    _pty: Box<dyn MasterPty + Send>,
}

impl Screen {
    fn start(words: &[&str]) -> Screen {
        let pair =
            native_pty_system().openpty(PtySize { rows: 30, cols: 100, pixel_width: 0, pixel_height: 0 }).unwrap();
        let mut command = CommandBuilder::new(leakscope_bin());
        command.args(words);
        command.env("TERM", "xterm-256color");
        command.cwd(repo_root());
        let child = pair.slave.spawn_command(command).unwrap();
        let mut reader = pair.master.try_clone_reader().unwrap();
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // A pty whose program has ended fails to be read.
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let keys = pair.master.take_writer().unwrap();
        Screen { child, keys, output, parser: vt100::Parser::new(30, 100, 0), _pty: pair.master }
    }

    /// Waits until the screen is as it should be; every output is a chance.
    fn until(&mut self, what: &str, is_there: impl Fn(&vt100::Screen) -> bool) {
        let end = Instant::now() + LIMIT;
        while !is_there(self.parser.screen()) {
            let left = end.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.parser.process(&bytes),
                Err(_) => panic!("{what}: the screen is\n{}", self.parser.screen().contents()),
            }
        }
    }

    fn until_shown(&mut self, words: &str) {
        self.until(words, |screen| screen.contents().contains(words));
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }
}

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
