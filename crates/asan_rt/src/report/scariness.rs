//! How bad a finding is, as a number: `print_scariness`. Source: what LLVM 19 prints.

use crate::options::options;
use alloc::string::String;

/// A sum, and what it is made of.
#[derive(Default)]
pub struct Scariness {
    score: u32,
    words: String,
}

impl Scariness {
    /// A finding of one word.
    #[must_use]
    pub fn of(score: u32, word: &str) -> Self {
        let mut this = Self::default();
        this.add(score, word);
        this
    }

    /// Adds to it.
    pub fn add(&mut self, score: u32, word: &str) {
        self.score += score;
        if !self.words.is_empty() {
            self.words.push('-');
        }
        self.words.push_str(word);
    }

    /// Adds what an access is: its size and direction.
    pub fn add_access(&mut self, bytes: usize, is_write: bool) {
        match bytes {
            0 => {}
            1..=9 => self.add((bytes + bytes / 2) as u32, &alloc::format!("{bytes}-byte")),
            _ => self.add(15, "multi-byte"),
        }
        if bytes > 0 {
            self.add(if is_write { 20 } else { 1 }, if is_write { "write" } else { "read" });
        }
    }

    /// Prints it if the options ask for that.
    pub fn print(&self) {
        if options().print_scariness {
            crate::out!("SCARINESS: {} ({})\n", self.score, self.words);
        }
    }
}
