//! Valgrind's XML, protocol 4: one document after the other, cut off anywhere.
//!
//! Source: Valgrind 3.19, `docs/internals/xml-output-protocol4.txt`. The reader keeps no tree: the text of an
//! element is used when the element ends, and what is open is a finding and a frame at most.
//!
//! Nine tenths of such a file are frames, and most of these are copies of an earlier one (`main`, the functions of
//! libraries): a frame whose bytes were read before is looked up instead of read, see [`KnownFrames`].

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::rc::Rc;
use std::sync::LazyLock;

use leakscope_model::Tool;
use memchr::memmem::Finder;
use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesRef, BytesText, Event};

use crate::lines::{decimal, hex};
use crate::memcheck::{self, Finding};
use crate::sink::{ErrorHandle, FrameText, Map, Sink};

/// Bytes of one tag or text; what is longer is not XML that Valgrind wrote.
const LONGEST: u64 = 16 << 20;
/// Elements that are open at once, and bytes of a name. Valgrind nests seven, but every document that breaks off leaves
/// some open, and the reader keeps the name of each.
const MOST_OPEN: usize = 1 << 16;
const LONGEST_NAME: usize = 1024;
/// Bytes of all frames that are known by their text; with more, all are forgotten.
const MOST_KNOWN_BYTES: usize = 32 << 20;

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

/// Frames of the process by their text between the tags.
#[derive(Default)]
struct KnownFrames {
    numbers: Map<Box<[u8]>, u32>,
    bytes: usize,
}

impl KnownFrames {
    fn insert(&mut self, text: &[u8], number: u32) {
        if self.bytes + text.len() > MOST_KNOWN_BYTES {
            self.clear();
        }
        self.bytes += text.len();
        self.numbers.insert(text.into(), number);
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// What is open.
#[derive(Default)]
struct Document {
    /// Which of the sink's it is; none before its id or its first finding.
    process: Option<usize>,
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
    known_frames: KnownFrames,
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
    let mut open = 0_usize;
    loop {
        buffer.clear();
        left.set(LONGEST);
        let frames_may_follow = match reader.read_event_into(&mut buffer) {
            Ok(Event::Start(tag)) => {
                let name = tag.name();
                open += if name.as_ref().len() > LONGEST_NAME { MOST_OPEN } else { 1 };
                document.start(name.as_ref(), sink);
                name.as_ref() == b"stack"
            }
            Ok(Event::End(tag)) => {
                open = open.saturating_sub(1);
                let name = tag.name();
                document.end(name.as_ref(), sink);
                name.as_ref() == b"frame"
            }
            Ok(Event::Eof) => break,
            Ok(event) => {
                document.words(&event);
                false
            }
            Err(quick_xml::Error::Io(error)) => return Err(io::Error::new(error.kind(), error.to_string())),
            Err(error) => {
                let place = reader.error_position();
                sink.unread(place, &format!("byte {place}: {error}"));
                // The reader stands behind what it could not take; at the end it says so next.
                if left.get() == LONGEST {
                    break;
                }
                false
            }
        };
        if frames_may_follow && document.in_error && !document.in_suppression {
            let mut input = reader.stream();
            let taken = document.frames_at_hand(input.fill_buf()?, sink);
            input.consume(taken);
        }
        if open > MOST_OPEN {
            let place = reader.buffer_position();
            sink.unread(place, &format!("byte {place}: too many elements are open; nothing behind is read"));
            break;
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

    fn add_reference(&mut self, reference: &BytesRef<'_>) {
        match resolve_predefined_entity(&String::from_utf8_lossy(reference)) {
            Some(text) => self.text.push_str(text),
            None => self.text.extend(reference.resolve_char_ref().ok().flatten()),
        }
    }

    /// What stands between tags.
    fn words(&mut self, event: &Event<'_>) {
        match event {
            Event::Text(text) => self.add(text),
            Event::CData(text) => self.text.push_str(&String::from_utf8_lossy(text)),
            Event::GeneralRef(reference) => self.add_reference(reference),
            _ => {}
        }
    }

    /// Takes the whole frames that `text` begins with; gives the bytes that it took. What looks like anything else is
    /// left to the reader.
    fn frames_at_hand(&mut self, text: &[u8], sink: &mut Sink) -> usize {
        const OPEN: &[u8] = b"<frame>";
        static CLOSE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"</frame>"));
        let mut rest = text;
        while let Some(frame) = rest.trim_ascii_start().strip_prefix(OPEN) {
            let Some(end) = CLOSE.find(frame) else { break };
            self.need_process(sink);
            // What stood before a frame is not of it, and not of what follows.
            self.frame.clear();
            let number = match self.known_frames.numbers.get(&frame[..end]) {
                Some(&number) => number,
                None => {
                    let Some(number) = self.read_frame(&frame[..end], sink) else { break };
                    self.known_frames.insert(&frame[..end], number);
                    number
                }
            };
            self.push_frame(number);
            rest = &frame[end + CLOSE.needle().len()..];
        }
        text.len() - rest.len()
    }

    /// A frame from its text between the tags; `None` when that holds more than the elements of a frame.
    fn read_frame(&mut self, text: &[u8], sink: &mut Sink) -> Option<u32> {
        self.start(b"frame", sink);
        let mut reader = Reader::from_reader(text);
        reader.config_mut().allow_dangling_amp = true;
        loop {
            let is_of_frame = |name: &[u8]| matches!(name, b"ip" | b"obj" | b"fn" | b"dir" | b"file" | b"line");
            match reader.read_event() {
                Ok(Event::Start(tag)) if is_of_frame(tag.name().as_ref()) => self.start(tag.name().as_ref(), sink),
                Ok(Event::End(tag)) if is_of_frame(tag.name().as_ref()) => self.end(tag.name().as_ref(), sink),
                Ok(Event::Eof) => break,
                Ok(event @ (Event::Text(_) | Event::CData(_) | Event::GeneralRef(_))) => self.words(&event),
                _ => return None,
            }
        }
        self.text.clear();
        Some(self.keep_frame(sink))
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
                let pid = decimal(text).map_or(0, |pid| pid as u32);
                let process = self.begin_process(pid, sink);
                sink[process].out.witness.version = std::mem::take(&mut self.version);
            }
            b"line" => {
                if let Some(rest) = text.strip_prefix("Using Valgrind-") {
                    self.version = rest.split(' ').next().unwrap_or_default().to_owned();
                }
            }
            b"ppid" => {
                if let Some(process) = self.process {
                    sink[process].out.process.parent_pid = decimal(text).map_or(0, |pid| pid as u32);
                }
            }
            b"protocoltool" => self.is_foreign = text != "memcheck",
            b"exe" | b"arg" if self.in_argv => {
                let Some(process) = self.process else { return self.text.clear() };
                let facts = &mut sink[process].out.process;
                if name == b"exe" {
                    facts.executable = text.to_owned();
                }
                if facts.command_line.len() < 4096 {
                    facts.command_line.push(text.to_owned());
                }
            }
            b"argv" => self.in_argv = false,
            b"state" if text == "FINISHED" => {
                if let Some(process) = self.process.filter(|&process| !sink[process].has_check()) {
                    sink[process].begin_check();
                }
            }
            b"count" => self.pair_count = decimal(text).unwrap_or(0),
            b"unique" => {
                let handle = hex(text).and_then(|unique| self.errors.get(&unique));
                if let (Some(process), Some(&handle)) = (self.process, handle) {
                    sink[process].set_count(handle, self.pair_count);
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

    /// What was kept of the process before is numbered there, and means nothing here.
    fn begin_process(&mut self, pid: u32, sink: &mut Sink) -> usize {
        self.known_frames.clear();
        self.errors.clear();
        self.last_record = 0;
        *self.process.insert(sink.new_process(pid, Tool::Memcheck))
    }

    /// A document whose head is lost has findings all the same.
    fn need_process(&mut self, sink: &mut Sink) -> usize {
        self.process.unwrap_or_else(|| self.begin_process(0, sink))
    }

    fn end_in_error(&mut self, name: &[u8], sink: &mut Sink) {
        let process = self.need_process(sink);
        let text = self.text.trim();
        match name {
            b"ip" => self.frame.pc = hex(text).unwrap_or(0),
            b"obj" => self.frame.object.push_str(text),
            b"fn" => self.frame.function.push_str(text),
            b"dir" => self.frame.directory.push_str(text),
            b"file" => self.frame.file.push_str(text),
            b"line" => self.frame.line = decimal(text).map_or(0, |line| line as u32),
            b"frame" => {
                let frame = self.keep_frame(sink);
                self.push_frame(frame);
            }
            b"stack" => {
                let leaf = sink[process].stack(&self.frames);
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
            b"error" => self.end_error(process, sink),
            _ => {}
        }
    }

    /// A sentence whose stack may follow; the one before it had none.
    fn label(&mut self, text: String) {
        if let Some(label) = self.label.replace(text) {
            self.finding.note(label, 0);
        }
    }

    fn keep_frame(&mut self, sink: &mut Sink) -> u32 {
        let process = self.need_process(sink);
        let process = &mut sink[process];
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
        self.frame.clear();
        frame
    }

    fn push_frame(&mut self, frame: u32) {
        if self.frames.len() < crate::sink::DEEPEST {
            self.frames.push(frame);
        }
    }

    fn end_error(&mut self, process: usize, sink: &mut Sink) {
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
                    memcheck::keep_loss(&mut sink[process], loss, leaf, &mut self.last_record);
                }
                None => sink.unread(0, &finding.what),
            }
        } else if let Some(handle) = memcheck::keep(&mut sink[process], finding) {
            self.errors.insert(self.unique, handle);
        }
    }

    fn tell_foreign(&mut self, sink: &mut Sink) {
        if self.foreign > 0
            && let Some(process) = self.process
        {
            let sentence = format!("{} findings are of another tool than Memcheck and were left out", self.foreign);
            sink[process].out.problems.push(sentence);
            self.foreign = 0;
        }
    }

    fn truncated(&mut self, sink: &mut Sink) {
        self.tell_foreign(sink);
        if self.is_open
            && let Some(process) = self.process
        {
            let what = if self.in_error { "within a finding" } else { "before its end" };
            sink[process].out.problems.push(format!("the XML document is cut off {what}"));
        }
        self.is_open = false;
    }
}
