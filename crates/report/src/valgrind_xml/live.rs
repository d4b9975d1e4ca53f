//! Valgrind's XML in pieces, while the program runs: what [`super::write`] writes at once.

use std::io::{self, Write};

use leakscope_findings::analysis::{Analysis, Stack, signal_name};

use crate::text::live::OpenDescriptor;

use super::{Document, Style, duration_ns};

/// What of a document was written so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Number of the next error.
    unique: u64,
    /// How often each error happened, by its number.
    counts: Vec<(u64, u64)>,
}

/// Writes pieces of one document.
pub struct Live<'a> {
    document: Document<'a>,
    progress: &'a mut Progress,
}

impl<'a> Live<'a> {
    /// Goes on with a document.
    pub fn new(out: &'a mut dyn Write, style: &'a Style, progress: &'a mut Progress) -> Self {
        Self { document: Document { out, style, unique: progress.unique }, progress }
    }

    /// The head of the document.
    ///
    /// # Errors
    /// Those of the writer; so for the other functions.
    pub fn begin(&mut self, analysis: &Analysis) -> io::Result<()> {
        self.document.head(analysis, "a memory error detector")?;
        self.document.status("RUNNING", 0)
    }

    /// Errors that no rule hides; `number` tells one that is counted on from others.
    ///
    /// # Errors
    /// As above.
    pub fn errors(&mut self, analysis: &Analysis) -> io::Result<()> {
        for misuse in analysis.shown_misuses() {
            self.progress.counts.push((misuse.count, self.document.unique));
            self.document.misuse(misuse)?;
        }
        for error in analysis.shown_memory_errors() {
            self.progress.counts.push((error.count, self.document.unique));
            self.document.memory_error(error)?;
        }
        self.progress.unique = self.document.unique;
        Ok(())
    }

    /// Loss records of a leak check, with what has changed since an earlier one.
    ///
    /// # Errors
    /// As above.
    pub fn leaks(&mut self, analysis: &Analysis, before: Option<&Analysis>) -> io::Result<()> {
        for record in analysis.shown_records() {
            self.document.loss_record(record, analysis.records.len(), before)?;
        }
        self.progress.unique = self.document.unique;
        Ok(())
    }

    /// The signal that ends the process.
    ///
    /// # Errors
    /// As above.
    pub fn fatal_signal(&mut self, signal: i32, code: i32, address: u64, stack: Option<&Stack>) -> io::Result<()> {
        let name = signal_name(signal);
        self.document.line(&format!(
            "<fatal_signal>\n  <tid>1</tid>\n  <signo>{signal}</signo>\n  <signame>{name}</signame>\n  <sicode>{code}</sicode>\n  <siaddr>{address:#x}</siaddr>"
        ))?;
        match stack {
            Some(stack) => self.document.stack(stack)?,
            None => self.document.line("  <stack>\n  </stack>")?,
        }
        self.document.line("</fatal_signal>\n")
    }

    /// What the program says.
    ///
    /// # Errors
    /// As above.
    pub fn message(&mut self, words: &str, stack: Option<&Stack>) -> io::Result<()> {
        self.document.line("<clientmsg>\n  <tid>1</tid>")?;
        self.document.element(2, "text", words)?;
        if let Some(stack) = stack {
            self.document.stack(stack)?;
        }
        self.document.line("</clientmsg>\n")
    }

    /// Open descriptors that the program opened; with `all`, also those that it was started with. As Valgrind 3.21 and
    /// later write them; earlier ones write none.
    ///
    /// # Errors
    /// As above.
    pub fn descriptors(&mut self, open: &[OpenDescriptor], all: bool) -> io::Result<()> {
        for descriptor in open.iter().filter(|descriptor| all || descriptor.number > 2) {
            self.document.open_error(1, "FdNotClosed")?;
            self.document.line(&format!("  <fd>{}</fd>", descriptor.number))?;
            self.document.element(2, "path", &descriptor.target)?;
            self.document.element(2, "what", &descriptor.words())?;
            match &descriptor.stack {
                Some(stack) => self.document.stack(stack)?,
                None => self.document.element(2, "auxwhat", "<inherited from parent>")?,
            }
            self.document.line("</error>\n")?;
        }
        self.progress.unique = self.document.unique;
        Ok(())
    }

    /// The program's end; what follows is the leak check at the end.
    ///
    /// # Errors
    /// As above.
    pub fn finished(&mut self, analysis: &Analysis) -> io::Result<()> {
        self.document.status("FINISHED", duration_ns(analysis))
    }

    /// The end of the document. `counts` are how often the errors happened, in the order in which they were written.
    ///
    /// # Errors
    /// As above.
    pub fn end(&mut self, analysis: &Analysis, counts: &[u64]) -> io::Result<()> {
        for (known, &count) in self.progress.counts.iter_mut().zip(counts) {
            known.0 = count;
        }
        self.document.tail(&self.progress.counts, analysis)
    }
}
