//! A program in a real terminal (a pty), its screen read by a terminal emulator.

use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use leakscope_e2e::{leakscope_bin, repo_root};
use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

/// A step that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(20);

/// A program in a terminal.
pub struct Screen {
    /// It.
    pub child: Box<dyn Child + Send + Sync>,
    keys: Box<dyn Write + Send>,
    output: Receiver<Vec<u8>>,
    /// What it shows.
    pub parser: vt100::Parser,
    _pty: Box<dyn MasterPty + Send>,
}

impl Screen {
    /// Starts `leakscope` with these arguments.
    pub fn start(words: &[&str]) -> Screen {
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
    pub fn until(&mut self, what: &str, is_there: impl Fn(&vt100::Screen) -> bool) {
        let end = Instant::now() + LIMIT;
        while !is_there(self.parser.screen()) {
            let left = end.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.parser.process(&bytes),
                Err(_) => panic!("{what}: the screen is\n{}", self.parser.screen().contents()),
            }
        }
    }

    /// Waits until these words are there.
    pub fn until_shown(&mut self, words: &str) {
        self.until(words, |screen| screen.contents().contains(words));
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }
}
