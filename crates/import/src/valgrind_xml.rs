//! Valgrind's XML, protocol 4: one document after the other, cut off anywhere.
//!
//! Source: Valgrind 3.19, `docs/internals/xml-output-protocol4.txt`. The reader keeps no tree: the text of an
//! element is used when the element ends, and what is open is a finding and a frame at most.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use leakscope_model::Tool;
use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesText, Event};

use crate::lines::{decimal, hex};
use crate::memcheck::{self, Finding};
use crate::sink::{ErrorHandle, FrameText, Map, Sink};

/// Bytes of one tag or text; what is longer is not XML that Valgrind wrote.
const LONGEST: u64 = 16 << 20;

/// Ends the input where one tag or text gets too long to be kept in memory.
struct Bounded<'a> {
    inner: &'a mut dyn BufRead,
    left: Rc<Cell<u64>>,
}

impl Read for Bounded<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let taken = available.len().min(out.len());
        out[..taken].copy_from_slice(&available[..taken]);
        self.consume(taken);
        Ok(taken)
    }
}

impl BufRead for Bounded<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left.get() == 0 {
            return Ok(&[]);
        }
        self.inner.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.left.set(self.left.get().saturating_sub(bytes as u64));
        self.inner.consume(bytes);
    }
}

/// The frame that is open.
#[derive(Default)]
struct Frame {
    pc: u64,
    object: String,
    function: String,
    directory: String,
    file: String,
    line: u32,
}

impl Frame {
    fn clear(&mut self) {
        self.pc = 0;
        self.line = 0;
        for text in [&mut self.object, &mut self.function, &mut self.directory, &mut self.file] {
            text.clear();
        }
    }
}

/// What is open.
#[derive(Default)]
struct Document {
    process: usize,
    /// Facts that come before the process id.
    version: String,
    in_error: bool,
    in_suppression: bool,
    in_argv: bool,
    /// Elements whose text is collected end here.
    text: String,
    finding: Finding,
    unique: u64,
    label: Option<String>,
    frames: Vec<u32>,
    frame: Frame,
    last_record: u64,
    errors: Map<u64, ErrorHandle>,
    pair_count: u64,
    is_open: bool,
    is_foreign: bool,
    foreign: u64,
}

/// Reads documents to the end of `input`.
pub(crate) fn read(input: &mut dyn BufRead, sink: &mut Sink) -> io::Result<()> {
    let left = Rc::new(Cell::new(LONGEST));
    let mut reader = Reader::from_reader(Bounded { inner: input, left: left.clone() });
    let config = reader.config_mut();
    config.check_end_names = false;
    config.allow_unmatched_ends = true;
    config.allow_dangling_amp = true;
    let mut buffer = Vec::new();
    let mut document = Document::default();
    loop {
        buffer.clear();
        left.set(LONGEST);
        match reader.read_event_into(&mut buffer) {
            Ok(Event::Start(tag)) => document.start(tag.name().as_ref(), sink),
            Ok(Event::Text(text)) => document.add(&text),
            Ok(Event::CData(text)) => document.text.push_str(&String::from_utf8_lossy(&text)),
            Ok(Event::GeneralRef(reference)) => {
                let name = String::from_utf8_lossy(&reference);
                match resolve_predefined_entity(&name) {
                    Some(text) => document.text.push_str(text),
                    None => document.text.extend(reference.resolve_char_ref().ok().flatten()),
                }
            }
            Ok(Event::End(tag)) => document.end(tag.name().as_ref(), sink),
            Ok(Event::Eof) => break,
            Ok(_) => {}
            Err(quick_xml::Error::Io(error)) => return Err(io::Error::new(error.kind(), error.to_string())),
            Err(error) => {
                let place = reader.error_position();
                sink.unread(place, &format!("byte {place}: {error}"));
                // The reader stands behind what it could not take; at the end it says so next.
                if left.get() == LONGEST {
                    break;
                }
            }
        }
    }
    document.truncated(sink);
    Ok(())
}

impl Document {
    fn add(&mut self, text: &BytesText<'_>) {
        // White space between elements is most of the texts.
        if text.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        self.text.push_str(&String::from_utf8_lossy(text));
    }

    fn start(&mut self, name: &[u8], sink: &mut Sink) {
        self.text.clear();
        match name {
            b"valgrindoutput" => {
                self.truncated(sink);
                *self = Self { is_open: true, ..Self::default() };
            }
            b"error" => {
                self.in_error = true;
                self.finding = Finding::default();
                self.label = None;
                self.unique = 0;
                self.frames.clear();
            }
            b"suppression" => self.in_suppression = true,
            b"argv" => self.in_argv = true,
            b"stack" => self.frames.clear(),
            b"frame" => self.frame.clear(),
            _ => {}
        }
    }

    fn end(&mut self, name: &[u8], sink: &mut Sink) {
        if self.in_suppression {
            self.in_suppression = name != b"suppression";
            return;
        }
        if self.in_error {
            self.end_in_error(name, sink);
            self.text.clear();
            return;
        }
        let text = self.text.trim();
        match name {
            b"pid" => {
                self.process = sink.new_process(decimal(text).map_or(0, |pid| pid as u32), Tool::Memcheck);
                sink[self.process].out.witness.version = std::mem::take(&mut self.version);
            }
            b"line" => {
                if let Some(rest) = text.strip_prefix("Using Valgrind-") {
                    self.version = rest.split(' ').next().unwrap_or_default().to_owned();
                }
            }
            b"ppid" if self.has_process(sink) => {
                sink[self.process].out.process.parent_pid = decimal(text).map_or(0, |pid| pid as u32);
            }
            b"protocoltool" => self.is_foreign = text != "memcheck",
            b"exe" | b"arg" if self.in_argv && self.has_process(sink) => {
                let facts = &mut sink[self.process].out.process;
                if name == b"exe" {
                    facts.executable = text.to_owned();
                }
                if facts.command_line.len() < 4096 {
                    facts.command_line.push(text.to_owned());
                }
            }
            b"argv" => self.in_argv = false,
            b"state" if text == "FINISHED" && self.has_process(sink) && !sink[self.process].has_check() => {
                sink[self.process].begin_check();
            }
            b"count" => self.pair_count = decimal(text).unwrap_or(0),
            b"unique" => {
                if let Some(&handle) = hex(text).and_then(|unique| self.errors.get(&unique)) {
                    sink[self.process].set_count(handle, self.pair_count);
                }
            }
            b"valgrindoutput" => {
                self.is_open = false;
                self.tell_foreign(sink);
            }
            _ => {}
        }
        self.text.clear();
    }

    fn has_process(&self, sink: &Sink) -> bool {
        self.process < sink.processes.len()
    }

    fn end_in_error(&mut self, name: &[u8], sink: &mut Sink) {
        if !self.has_process(sink) {
            self.process = sink.new_process(0, Tool::Memcheck);
        }
        let text = self.text.trim();
        match name {
            b"ip" => self.frame.pc = hex(text).unwrap_or(0),
            b"obj" => self.frame.object.push_str(text),
            b"fn" => self.frame.function.push_str(text),
            b"dir" => self.frame.directory.push_str(text),
            b"file" => self.frame.file.push_str(text),
            b"line" => self.frame.line = decimal(text).map_or(0, |line| line as u32),
            b"frame" => self.end_frame(sink),
            b"stack" => {
                let leaf = sink[self.process].stack(&self.frames);
                self.frames.clear();
                match self.label.take() {
                    Some(label) => self.finding.note(label, leaf),
                    None if self.finding.stack.is_none() => self.finding.stack = Some(leaf),
                    None => self.finding.note(String::new(), leaf),
                }
            }
            b"unique" => self.unique = hex(text).unwrap_or(0),
            b"tid" => self.finding.tid = decimal(text).map_or(0, |tid| tid as u32),
            b"kind" => text.clone_into(&mut self.finding.kind),
            b"what" => text.clone_into(&mut self.finding.what),
            b"auxwhat" => self.label(text.to_owned()),
            b"text" if self.finding.what.is_empty() => text.clone_into(&mut self.finding.what),
            b"text" => self.label(text.to_owned()),
            b"error" => self.end_error(sink),
            _ => {}
        }
    }

    /// A sentence whose stack may follow; the one before it had none.
    fn label(&mut self, text: String) {
        if let Some(label) = self.label.replace(text) {
            self.finding.note(label, 0);
        }
    }

    fn end_frame(&mut self, sink: &mut Sink) {
        let process = &mut sink[self.process];
        let module = process.module(&self.frame.object, crate::sink::Base::LinkTime, 0, None);
        let frame = process.frame(&FrameText {
            pc: self.frame.pc,
            function: &self.frame.function,
            file: &self.frame.file,
            directory: &self.frame.directory,
            line: self.frame.line,
            column: 0,
            module,
            offset: None,
        });
        if self.frames.len() < crate::sink::DEEPEST {
            self.frames.push(frame);
        }
    }

    fn end_error(&mut self, sink: &mut Sink) {
        self.in_error = false;
        if let Some(label) = self.label.take() {
            self.finding.note(label, 0);
        }
        let finding = std::mem::take(&mut self.finding);
        if self.is_foreign {
            self.foreign += 1;
            return;
        }
        if finding.kind.starts_with("Leak_") {
            match memcheck::loss(&finding.what) {
                Some(loss) => {
                    let leaf = finding.stack.unwrap_or(0);
                    memcheck::keep_loss(&mut sink[self.process], loss, leaf, &mut self.last_record);
                }
                None => sink.unread(0, &finding.what),
            }
        } else if let Some(handle) = memcheck::keep(&mut sink[self.process], finding) {
            self.errors.insert(self.unique, handle);
        }
    }

    fn tell_foreign(&mut self, sink: &mut Sink) {
        if self.foreign > 0 && self.has_process(sink) {
            let sentence = format!("{} findings are of another tool than Memcheck and were left out", self.foreign);
            sink[self.process].out.problems.push(sentence);
            self.foreign = 0;
        }
    }

    fn truncated(&mut self, sink: &mut Sink) {
        self.tell_foreign(sink);
        if self.is_open && self.has_process(sink) {
            let what = if self.in_error { "within a finding" } else { "before its end" };
            sink[self.process].out.problems.push(format!("the XML document is cut off {what}"));
        }
        self.is_open = false;
    }
}
