//! The report for people in pieces, while the program runs: what [`super::write`] writes at once.

use std::io::{self, Write};

use leakscope_findings::analysis::{Analysis, LeakCheck, Stack, signal_name};
use leakscope_findings::suppressions::Error;

use super::{ERROR, HEADING, PLAIN, Style, Text, error_lists, error_summary, heap_summary, leaks, leaks_since, notes};
use crate::escape::terminal;

/// A descriptor that is open at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenDescriptor {
    /// Its number.
    pub number: i32,
    /// What it is: `file descriptor`, `AF_INET socket`.
    pub what: String,
    /// What it is open on; may be empty.
    pub target: String,
    /// Where it was opened; `None` when it was inherited.
    pub stack: Option<Stack>,
}

impl OpenDescriptor {
    /// Memcheck's sentence.
    pub(crate) fn words(&self) -> String {
        let Self { number, what, target, .. } = self;
        let space = if target.is_empty() { "" } else { " " };
        format!("Open {what} {number}:{space}{target}")
    }
}

/// Writes pieces of the report on one process.
pub struct Live<'a> {
    text: Text<'a>,
}

impl<'a> Live<'a> {
    /// Pieces of the report on process `pid`.
    pub fn new(out: &'a mut dyn Write, style: &'a Style, pid: u32) -> Self {
        Self { text: Text { out, style, pid } }
    }

    /// The tool's name and the command.
    ///
    /// # Errors
    /// Those of the writer; so for the other functions.
    pub fn begin(&mut self, analysis: &Analysis) -> io::Result<()> {
        if self.text.style.verbosity == 0 || !self.text.style.heading {
            return Ok(());
        }
        let version = terminal(&analysis.tool_version);
        self.text.line(HEADING, &format!("leakscope {version}, a memory error detector"))?;
        let command: Vec<String> = analysis.process.command_line.iter().map(|argument| terminal(argument)).collect();
        self.text.line(PLAIN, &format!("Command: {}", command.join(" ")))?;
        if analysis.process.origin != leakscope_findings::recording::Origin::Start {
            self.text.line(PLAIN, &format!("Parent PID: {}", analysis.process.parent_pid))?;
        }
        self.text.blank()
    }

    /// Errors that no rule hides.
    ///
    /// # Errors
    /// As above.
    pub fn errors(&mut self, analysis: &Analysis) -> io::Result<()> {
        for misuse in analysis.shown_misuses() {
            super::misuse_error(&mut self.text, misuse)?;
            self.text.suppression(&Error::Misuse(misuse.kind), &misuse.stack)?;
        }
        for error in analysis.shown_memory_errors() {
            super::memory_error(&mut self.text, error)?;
            let (kind, bytes, message) = (error.kind, error.access_bytes, error.message.to_string());
            self.text.suppression(&Error::Memory { kind, bytes, message }, &error.stack)?;
        }
        Ok(())
    }

    /// The signal that ends the process, and where.
    ///
    /// # Errors
    /// As above.
    pub fn fatal_signal(&mut self, signal: i32, code: i32, address: u64, stack: Option<&Stack>) -> io::Result<()> {
        let name = signal_name(signal);
        let words = format!("Process terminating with default action of signal {signal} ({name})");
        self.text.line(ERROR, &words)?;
        let what = match (signal, code) {
            (11, 1) => Some("Access not within mapped region"),
            (11, 2) => Some("Bad permissions for mapped region"),
            (7, 1) => Some("Invalid address alignment"),
            (7, _) => Some("Access beyond the end of a mapped file"),
            (8, 1) => Some("Integer divide by zero"),
            (11, 128) => Some("General Protection Fault"),
            _ => None,
        };
        match what {
            Some(what) if matches!((signal, code), (11, 1 | 2) | (7, _)) => {
                self.text.line(PLAIN, &format!(" {what} at address {address:#X}"))?;
            }
            Some(what) => self.text.line(PLAIN, &format!(" {what}"))?,
            None => {}
        }
        match stack {
            Some(stack) => self.text.stack(stack),
            None => Ok(()),
        }
    }

    /// What the program or the engine says.
    ///
    /// # Errors
    /// As above.
    pub fn message(&mut self, words: &str, by_program: bool, stack: Option<&Stack>) -> io::Result<()> {
        if by_program {
            // As Valgrind: without a stack the program's own lines have stars.
            for line in words.lines() {
                writeln!(self.text.out, "**{}** {}", self.text.pid, terminal(line))?;
            }
        } else if self.text.style.verbosity > 0 {
            for line in words.lines() {
                self.text.line(PLAIN, &terminal(line))?;
            }
        }
        match stack {
            Some(stack) => self.text.stack(stack),
            None => Ok(()),
        }
    }

    /// Loss records and sums of a leak check, with what has changed since an earlier one.
    ///
    /// # Errors
    /// As above.
    pub fn leaks(&mut self, analysis: &Analysis, before: Option<&Analysis>) -> io::Result<()> {
        leaks_since(&mut self.text, analysis, before)
    }

    /// A line of the user's own, before or after an error (`--error-markers`).
    ///
    /// # Errors
    /// As above.
    pub fn marker(&mut self, words: &str) -> io::Result<()> {
        if words.is_empty() { Ok(()) } else { self.text.line(PLAIN, &terminal(words)) }
    }

    /// The heap's totals, before the leak check at the end.
    ///
    /// # Errors
    /// As above.
    pub fn heap(&mut self, analysis: &Analysis) -> io::Result<()> {
        if self.text.style.verbosity > 0 { heap_summary(&mut self.text, analysis) } else { Ok(()) }
    }

    /// Open descriptors. Of those that every program has, only with `all`.
    ///
    /// # Errors
    /// As above.
    pub fn descriptors(&mut self, open: &[OpenDescriptor], all: bool) -> io::Result<()> {
        let standard = open.iter().filter(|descriptor| descriptor.number <= 2).count();
        if self.text.style.verbosity == 0 && (open.is_empty() || (standard == open.len() && !all)) {
            return Ok(());
        }
        self.text.blank()?;
        let words = format!("FILE DESCRIPTORS: {} open ({standard} std) at exit.", open.len());
        self.text.line(HEADING, &words)?;
        for descriptor in open.iter().filter(|descriptor| all || descriptor.number > 2) {
            self.text.line(PLAIN, &terminal(&descriptor.words()))?;
            match &descriptor.stack {
                Some(stack) => self.text.stack(stack)?,
                None => self.text.line(PLAIN, "   <inherited from parent>")?,
            }
            self.text.blank()?;
        }
        // In front of what follows there is a line already.
        if self.text.style.verbosity == 0 { self.text.blank() } else { Ok(()) }
    }

    /// Notes and the summary of errors.
    ///
    /// # Errors
    /// As above.
    pub fn end(&mut self, analysis: &Analysis) -> io::Result<()> {
        let text = &mut self.text;
        if text.style.verbosity > 0 {
            if analysis.options.leak_check == LeakCheck::No {
                leaks(text, analysis)?;
            }
            notes(text, analysis)?;
            if !text.style.error_lists {
                text.line(PLAIN, "For lists of detected and suppressed errors, rerun with: -s")?;
            }
            error_summary(text, analysis)?;
        }
        if text.style.error_lists { error_lists(text, analysis) } else { Ok(()) }
    }
}
