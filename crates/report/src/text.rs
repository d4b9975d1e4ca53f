//! The report for people: Memcheck's words and layout.
//!
//! Source: Valgrind's manual, section 4.2, and the output of 3.19. Every line begins with `==PID==`, but for
//! generated suppressions, which are meant to be copied. In colour, the text is the same and only escapes are
//! added.

pub mod live;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::Arc;

use anstyle::{AnsiColor, Color};
use leakscope_findings::analysis::{
    Amount, Analysis, Frame, LeakCheck, LossRecord, MemoryError, MisuseError, Outcome, Stack, signal_name,
};
use leakscope_findings::recording::{End, Origin, State};
use leakscope_findings::suppressions::{Error, generate};
use leakscope_model::{CheckTrigger, Heuristic, LeakKind, Tool};

use crate::escape::{push_terminal, terminal};
use crate::intervals;
use crate::wording::{self, grouped};

/// How the text looks, and how much of it there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Style {
    /// Add ANSI colours.
    pub colour: bool,
    /// 0: errors only (`-q`). 1: summaries too. 2: facts about the leak check too (`-v`).
    pub verbosity: u8,
    /// Repeat errors in order of their counts and list the used suppressions (`-s`).
    pub error_lists: bool,
    /// Add each finding's fingerprint.
    pub fingerprints: bool,
    /// Add a suppression for each finding (`--gen-suppressions=all`).
    pub gen_suppressions: bool,
    /// Show source files with their directories.
    pub directories: bool,
    /// Begin with the tool's name and the command.
    pub heading: bool,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            colour: false,
            verbosity: 1,
            error_lists: false,
            fingerprints: false,
            gen_suppressions: false,
            directories: false,
            heading: true,
        }
    }
}

const fn colour(colour: AnsiColor) -> anstyle::Style {
    anstyle::Style::new().fg_color(Some(Color::Ansi(colour)))
}

const PLAIN: anstyle::Style = anstyle::Style::new();
const PREFIX: anstyle::Style = anstyle::Style::new().dimmed();
const ERROR: anstyle::Style = colour(AnsiColor::Red).bold();
const POSSIBLE: anstyle::Style = colour(AnsiColor::Yellow).bold();
const INDIRECT: anstyle::Style = colour(AnsiColor::Magenta);
const REACHABLE: anstyle::Style = colour(AnsiColor::Cyan);
const GOOD: anstyle::Style = colour(AnsiColor::Green);
const HEADING: anstyle::Style = anstyle::Style::new().bold();
const SOURCE: anstyle::Style = colour(AnsiColor::Blue).bold();
const WARNING: anstyle::Style = colour(AnsiColor::Yellow);

fn kind_style(kind: Option<LeakKind>) -> anstyle::Style {
    match kind {
        Some(LeakKind::DefinitelyLost) => ERROR,
        Some(LeakKind::PossiblyLost) => POSSIBLE,
        Some(LeakKind::IndirectlyLost) => INDIRECT,
        Some(LeakKind::StillReachable) | None => REACHABLE,
    }
}

/// Writes the report on one process.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut dyn Write, analysis: &Analysis, style: &Style) -> io::Result<()> {
    let mut text = Text { out, style, pid: analysis.process.pid };
    if style.verbosity > 0 && style.heading {
        heading(&mut text, analysis)?;
    }
    if analysis.process.state == State::New {
        return nothing_recorded(&mut text, analysis);
    }
    for misuse in analysis.shown_misuses() {
        misuse_error(&mut text, misuse)?;
        text.suppression(&Error::Misuse(misuse.kind), &misuse.stack)?;
    }
    for error in analysis.shown_memory_errors() {
        memory_error(&mut text, error)?;
        let (kind, bytes, message) = (error.kind, error.access_bytes, error.message.to_string());
        text.suppression(&Error::Memory { kind, bytes, message }, &error.stack)?;
    }
    fatal_signal(&mut text, analysis)?;
    if style.verbosity > 0 {
        heap_summary(&mut text, analysis)?;
    }
    leaks(&mut text, analysis)?;
    if style.verbosity > 0 {
        interval_summary(&mut text, analysis)?;
        notes(&mut text, analysis)?;
        if !style.error_lists {
            text.line(PLAIN, "For lists of detected and suppressed errors, rerun with: -s")?;
        }
        error_summary(&mut text, analysis)?;
    }
    if style.error_lists {
        error_lists(&mut text, analysis)?;
    }
    Ok(())
}

/// Totals of zero would look like a clean program.
fn nothing_recorded(text: &mut Text<'_>, analysis: &Analysis) -> io::Result<()> {
    fatal_signal(text, analysis)?;
    let reason = match &analysis.outcome {
        Outcome::NotClassified(reason) => format!(": {}", terminal(reason)),
        Outcome::Classified(_) | Outcome::NotChecked => String::new(),
    };
    text.line(WARNING, &format!("Nothing was recorded, and blocks are not classified{reason}"))
}

/// Bytes that most lines of a stack have room in.
const LINE_BYTES: usize = 160;

/// Lines with their prefix.
struct Text<'a> {
    out: &'a mut dyn Write,
    style: &'a Style,
    pid: u32,
}

impl Text<'_> {
    /// `words` must have gone through [`terminal`] where they are not our own.
    fn line(&mut self, style: anstyle::Style, words: &str) -> io::Result<()> {
        // A report of a large file has millions of lines, and no colour.
        if !self.style.colour {
            return writeln!(self.out, "=={}== {words}", self.pid);
        }
        let painted = self.painted(style, words);
        let prefix = format!("=={}==", self.pid);
        writeln!(self.out, "{} {painted}", self.painted(PREFIX, &prefix))
    }

    fn blank(&mut self) -> io::Result<()> {
        self.line(PLAIN, "")
    }

    fn painted<'w>(&self, style: anstyle::Style, words: &'w str) -> Cow<'w, str> {
        if self.style.colour && style != PLAIN && !words.is_empty() {
            Cow::Owned(format!("{style}{words}{style:#}"))
        } else {
            Cow::Borrowed(words)
        }
    }

    fn stack(&mut self, stack: &Stack) -> io::Result<()> {
        for (i, frame) in stack.frames().iter().enumerate() {
            let line = self.frame(frame, if i == 0 { "at" } else { "by" });
            self.line(PLAIN, &line)?;
        }
        Ok(())
    }

    fn frame(&self, frame: &Frame, word: &str) -> String {
        let mut line = String::with_capacity(LINE_BYTES);
        _ = write!(line, "   {word} 0x{:X}: ", frame.ip);
        push_terminal(&mut line, frame.function.as_deref().unwrap_or("???"));
        match (&frame.file, frame.object.is_empty()) {
            (Some(file), _) => {
                line.push_str(" (");
                let begin = line.len();
                if let Some(directory) = frame.directory.as_deref().filter(|_| self.style.directories) {
                    push_terminal(&mut line, directory);
                    line.push('/');
                }
                push_terminal(&mut line, file);
                _ = write!(line, ":{}", frame.line);
                if self.style.colour {
                    let painted = self.painted(SOURCE, &line[begin..]).into_owned();
                    line.replace_range(begin.., &painted);
                }
                line.push(')');
            }
            (None, false) => {
                line.push_str(" (in ");
                push_terminal(&mut line, &frame.object);
                line.push(')');
            }
            (None, true) if frame.function.is_some() => line.push_str(" (in ???)"),
            (None, true) => {}
        }
        line
    }

    fn fingerprint(&mut self, fingerprint: impl std::fmt::Display) -> io::Result<()> {
        if self.style.fingerprints {
            self.line(PREFIX, &format!(" fingerprint {fingerprint}"))?;
        }
        Ok(())
    }

    fn suppression(&mut self, error: &Error, stack: &Stack) -> io::Result<()> {
        if self.style.gen_suppressions {
            self.out.write_all(generate(error, stack.frames()).text().as_bytes())?;
        }
        Ok(())
    }
}

fn heading(text: &mut Text<'_>, analysis: &Analysis) -> io::Result<()> {
    let leakscope = format!("leakscope {}", terminal(&analysis.tool_version));
    text.line(
        HEADING,
        &match analysis.witness.tool {
            Tool::Leakscope => format!("{leakscope}, a memory leak finder"),
            _ => format!("{}, imported by {leakscope}", terminal(&analysis.witness.to_string())),
        },
    )?;
    let command: Vec<String> = analysis.process.command_line.iter().map(|argument| terminal(argument)).collect();
    text.line(PLAIN, &format!("Command: {}", command.join(" ")))?;
    let how = match analysis.process.origin {
        Origin::Start => "",
        Origin::Fork => ", forked",
        Origin::Exec => ", started by exec",
    };
    if analysis.process.origin != Origin::Start || text.style.verbosity > 1 {
        text.line(PLAIN, &format!("Parent PID: {}{how}", analysis.process.parent_pid))?;
    }
    text.blank()
}

/// An error of another tool, in its words.
fn memory_error(text: &mut Text<'_>, error: &MemoryError) -> io::Result<()> {
    if error.thread > 1 {
        text.line(PLAIN, &format!("Thread {}:", error.thread))?;
    }
    text.line(ERROR, &terminal(&error.message))?;
    text.stack(&error.stack)?;
    about(text, &error.auxiliary)?;
    text.fingerprint(error.fingerprint)?;
    text.blank()
}

/// What is known of an address.
fn about(text: &mut Text<'_>, lines: &[(Arc<str>, Option<Stack>)]) -> io::Result<()> {
    for (label, stack) in lines {
        text.line(PLAIN, &format!(" {}", terminal(label)))?;
        if let Some(stack) = stack {
            text.stack(stack)?;
        }
    }
    Ok(())
}

fn misuse_error(text: &mut Text<'_>, error: &MisuseError) -> io::Result<()> {
    if error.thread > 1 {
        text.line(PLAIN, &format!("Thread {}:", error.thread))?;
    }
    text.line(ERROR, &wording::misuse(error))?;
    text.stack(&error.stack)?;
    if let Some(words) = wording::address(error) {
        text.line(PLAIN, &format!(" {words}"))?;
    }
    about(text, &error.about)?;
    if let Some(block) = &error.block {
        let (first, second) =
            if wording::is_free(error) { (&block.free, &block.allocation) } else { (&block.allocation, &None) };
        if let Some(stack) = first {
            text.stack(stack)?;
        }
        if let Some(stack) = second {
            text.line(PLAIN, " Block was alloc'd at")?;
            text.stack(stack)?;
        }
    }
    text.fingerprint(error.fingerprint)?;
    text.blank()
}

/// The signal that ended the process.
pub(crate) fn ended_by_signal(analysis: &Analysis) -> Option<i32> {
    match (&analysis.outcome, analysis.end) {
        (_, End::Signalled(signal)) => Some(signal),
        (Outcome::Classified(check), _) if check.trigger == CheckTrigger::FatalSignal => Some(check.status as i32),
        _ => None,
    }
}

fn fatal_signal(text: &mut Text<'_>, analysis: &Analysis) -> io::Result<()> {
    let Some(signal) = ended_by_signal(analysis) else { return Ok(()) };
    text.blank()?;
    let name = signal_name(signal);
    text.line(ERROR, &format!("Process terminating with default action of signal {signal} ({name})"))
}

fn heap_summary(text: &mut Text<'_>, analysis: &Analysis) -> io::Result<()> {
    let heap = &analysis.heap;
    text.blank()?;
    text.line(HEADING, "HEAP SUMMARY:")?;
    let when = if analysis.end == End::Running { "in use now" } else { "in use at exit" };
    let (bytes, blocks) = (grouped(heap.in_use_bytes), grouped(heap.in_use_blocks));
    text.line(PLAIN, &format!("    {when}: {bytes} bytes in {blocks} blocks"))?;
    let (allocs, frees) = (grouped(heap.allocs), grouped(heap.frees));
    let bytes = grouped(heap.allocated_bytes);
    text.line(PLAIN, &format!("  total heap usage: {allocs} allocs, {frees} frees, {bytes} bytes allocated"))?;
    text.blank()
}

fn leaks(text: &mut Text<'_>, analysis: &Analysis) -> io::Result<()> {
    leaks_since(text, analysis, None)
}

/// Loss records and sums, with what has changed since an earlier leak check.
fn leaks_since(text: &mut Text<'_>, analysis: &Analysis, before: Option<&Analysis>) -> io::Result<()> {
    let loud = text.style.verbosity > 0;
    match &analysis.outcome {
        _ if analysis.options.leak_check == LeakCheck::No => {
            if loud {
                text.line(PLAIN, "For a detailed leak analysis, rerun with: --leak-check=full")?;
                text.blank()?;
            }
            return Ok(());
        }
        Outcome::NotChecked => {
            if loud {
                text.line(PLAIN, "No leak check was made.")?;
                text.blank()?;
            }
            return Ok(());
        }
        Outcome::NotClassified(reason) => {
            text.line(WARNING, &format!("Live blocks by site, not classified: {}", terminal(reason)))?;
            if analysis.options.leak_check != LeakCheck::Full {
                text.line(PLAIN, "Rerun with --leak-check=full to see them")?;
            }
            text.blank()?;
        }
        Outcome::Classified(_) if analysis.records.is_empty() => {
            if loud {
                text.line(GOOD, "All heap blocks were freed -- no leaks are possible")?;
                text.blank()?;
            }
            return Ok(());
        }
        Outcome::Classified(_) => {}
    }
    for record in analysis.shown_records() {
        loss_record(text, record, analysis.records.len(), before)?;
    }
    if loud && matches!(analysis.outcome, Outcome::Classified(_)) {
        leak_summary(text, analysis, before)?;
    }
    Ok(())
}

fn loss_record(text: &mut Text<'_>, record: &LossRecord, of: usize, before: Option<&Analysis>) -> io::Result<()> {
    let earlier = before.map(|before| wording::Earlier::of(record, before));
    text.line(kind_style(record.kind), &wording::loss_record(record, of, earlier))?;
    text.stack(&record.stack)?;
    for note in &record.notes {
        text.line(PLAIN, &format!(" {}", terminal(note)))?;
    }
    text.fingerprint(record.fingerprint)?;
    text.blank()?;
    match record.kind {
        Some(kind) => text.suppression(&Error::Leak(kind), &record.stack),
        None => Ok(()),
    }
}

fn leak_summary(text: &mut Text<'_>, analysis: &Analysis, before: Option<&Analysis>) -> io::Result<()> {
    let totals = &analysis.totals;
    let amount = |amount: Amount| format!("{} bytes in {} blocks", grouped(amount.bytes), grouped(amount.blocks));
    let since = |now: Amount, before: Option<Amount>| {
        let bytes = wording::changed(now.bytes, before.map(|before| before.bytes));
        format!("{bytes} bytes in {} blocks", wording::changed(now.blocks, before.map(|before| before.blocks)))
    };
    text.line(HEADING, "LEAK SUMMARY:")?;
    let order = [LeakKind::DefinitelyLost, LeakKind::IndirectlyLost, LeakKind::PossiblyLost, LeakKind::StillReachable];
    for kind in order {
        let total = totals.of(kind);
        let style = if total.blocks > 0 { kind_style(Some(kind)) } else { PLAIN };
        let words = since(total, before.map(|before| before.totals.of(kind)));
        text.line(style, &format!("{:>18}: {words}", kind.words()))?;
    }
    let heuristics = Heuristic::ALL.map(|heuristic| (heuristic, totals.by_heuristic[heuristic as usize]));
    if heuristics.iter().any(|(_, total)| total.blocks > 0) {
        text.line(PLAIN, "                      of which reachable via heuristic:")?;
        for (heuristic, total) in heuristics.into_iter().filter(|(_, total)| total.blocks > 0) {
            let word = heuristic.option_word();
            text.line(PLAIN, &format!("                        {word:<19}: {}", amount(total)))?;
        }
    }
    let suppressed = since(totals.suppressed, before.map(|before| before.totals.suppressed));
    text.line(PLAIN, &format!("        suppressed: {suppressed}"))?;
    for used in analysis.used_suppressions.iter().filter(|used| used.blocks > 0) {
        let hidden = amount(Amount { bytes: used.bytes, blocks: used.blocks });
        let (name, file) = (terminal(&used.name), terminal(&used.file));
        text.line(PLAIN, &format!("                    by {name} ({file}:{}): {hidden}", used.line))?;
    }
    let full = analysis.options.leak_check == LeakCheck::Full;
    if !full && totals.by_kind.iter().any(|total| total.blocks > 0) {
        text.line(PLAIN, "Rerun with --leak-check=full to see details of leaked memory")?;
    }
    let hidden = !analysis.options.show_leak_kinds.contains(LeakKind::StillReachable);
    if full && hidden && totals.of(LeakKind::StillReachable).blocks > 0 {
        text.line(PLAIN, "Reachable blocks (those to which a pointer was found) are not shown.")?;
        text.line(PLAIN, "To see them, rerun with: --leak-check=full --show-leak-kinds=all")?;
    }
    text.blank()
}

/// Intervals that are listed whatever they left.
const MOST_INTERVALS: usize = 10;

/// What happened between `mtrace()` and `muntrace()`.
fn interval_summary(text: &mut Text<'_>, analysis: &Analysis) -> io::Result<()> {
    if analysis.intervals.is_empty() {
        return Ok(());
    }
    text.line(HEADING, "INTERVAL SUMMARY:")?;
    // A program may have one for each request: then those that left nothing are only counted.
    let all = analysis.intervals.len() <= MOST_INTERVALS;
    let listed = || analysis.intervals.iter().filter(|interval| all || interval.live.blocks > 0);
    for interval in listed() {
        text.line(PLAIN, &format!("    {}", intervals::summary(interval)))?;
    }
    let others = (analysis.intervals.len() - listed().count()) as u64;
    if others > 0 {
        text.line(PLAIN, &format!("    {} more intervals, of which nothing was live at their end", grouped(others)))?;
    }
    text.blank()?;
    for interval in analysis.intervals.iter().filter(|interval| !interval.records.is_empty()) {
        text.line(PLAIN, &format!("Interval {} begins at mtrace(), called", interval.number))?;
        text.stack(&interval.begin)?;
        if let Some(stack) = &interval.ended_at {
            text.line(PLAIN, " and ends at muntrace(), called")?;
            text.stack(stack)?;
        }
        text.blank()?;
        for (i, record) in interval.records.iter().enumerate() {
            text.line(REACHABLE, &intervals::record(interval, record, i + 1))?;
            text.stack(&record.stack)?;
            text.fingerprint(record.fingerprint)?;
            text.blank()?;
        }
    }
    Ok(())
}

/// What was lost on the way, and how the leak check went.
fn notes(text: &mut Text<'_>, analysis: &Analysis) -> io::Result<()> {
    let mut lines: Vec<String> =
        analysis.lost.words().into_iter().map(|(count, words)| format!("{} {words}", grouped(count))).collect();
    lines.extend(analysis.problems.iter().map(|problem| terminal(problem)));
    lines.extend(intervals::log_notes(analysis).iter().map(|note| terminal(note)));
    if analysis.process.sample_bytes > 0 {
        let bytes = grouped(analysis.process.sample_bytes);
        lines.push(format!("one allocation in {bytes} bytes was recorded; sizes and counts are estimates"));
    }
    if let Outcome::Classified(check) = &analysis.outcome {
        if check.lost_records > 0 {
            lines.push(format!("{} records of the leak check are missing: there was no room", check.lost_records));
        }
        if check.unreadable_bytes > 0 {
            lines.push(format!("{} bytes of roots could not be read", grouped(check.unreadable_bytes)));
        }
        if check.threads_unseen > 0 {
            lines.push(format!("the registers of {} threads are unknown to the leak check", check.threads_unseen));
        }
    }
    for line in &lines {
        text.line(WARNING, &format!("Note: {line}"))?;
    }
    if let (Outcome::Classified(check), true) = (&analysis.outcome, text.style.verbosity > 1) {
        let milliseconds = |ns: u64| format!("{}.{:03}", ns / 1_000_000, ns / 1000 % 1000);
        let (read, threads) = (grouped(check.root_bytes), check.threads_seen);
        let (check, pause) = (milliseconds(check.check_ns), milliseconds(check.pause_ns));
        let words = format!("Leak check: {read} bytes of roots, {threads} threads, {check} ms, paused {pause} ms");
        text.line(PLAIN, &words)?;
    }
    if !lines.is_empty() {
        text.blank()?;
    }
    Ok(())
}

fn error_summary(text: &mut Text<'_>, analysis: &Analysis) -> io::Result<()> {
    let errors = &analysis.errors;
    let words = format!(
        "ERROR SUMMARY: {} errors from {} contexts (suppressed: {} from {})",
        errors.errors, errors.contexts, errors.suppressed, errors.suppressed_contexts
    );
    text.line(if errors.errors > 0 { ERROR } else { GOOD }, &words)
}

/// `-s`: errors again, rarest first, and the suppressions that were used.
fn error_lists(text: &mut Text<'_>, analysis: &Analysis) -> io::Result<()> {
    enum Listed<'a> {
        Misuse(&'a MisuseError),
        Memory(&'a MemoryError),
    }
    let misuses = analysis.shown_misuses().map(|error| (error.count, Listed::Misuse(error)));
    let others = analysis.shown_memory_errors().map(|error| (error.count, Listed::Memory(error)));
    let mut errors: Vec<(u64, Listed<'_>)> = misuses.chain(others).collect();
    errors.sort_by_key(|&(count, _)| count);
    for (i, (count, error)) in errors.iter().enumerate() {
        text.blank()?;
        let contexts = analysis.errors.contexts;
        text.line(PLAIN, &format!("{count} errors in context {} of {contexts}:", i + 1))?;
        match error {
            Listed::Misuse(error) => misuse_error(text, error)?,
            Listed::Memory(error) => memory_error(text, error)?,
        }
    }
    for (i, used) in analysis.used_suppressions.iter().enumerate() {
        let pid = text.pid;
        if i == 0 {
            writeln!(text.out, "--{pid}-- ")?;
        }
        let (name, file) = (terminal(&used.name), terminal(&used.file));
        let hidden = if used.blocks > 0 {
            format!(" suppressed: {} bytes in {} blocks", grouped(used.bytes), grouped(used.blocks))
        } else {
            String::new()
        };
        writeln!(text.out, "--{pid}-- used_suppression: {:6} {name} {file}:{}{hidden}", used.count, used.line)?;
    }
    if !errors.is_empty() || !analysis.used_suppressions.is_empty() {
        text.blank()?;
        error_summary(text, analysis)?;
    }
    Ok(())
}
