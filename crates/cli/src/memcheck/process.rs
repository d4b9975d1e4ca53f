//! One process of `leakscope memcheck`: its events become pieces of reports, and a recording at its end.

use std::path::PathBuf;

use anyhow::{Context, Result};
use leakscope_findings::analysis::{Analysis, LeakCheck, Stack};
use leakscope_findings::recording::{BuildOptions, Collector, End, Names, ResolvedFrame};
use leakscope_findings::{ProcessRecording, analyse};
use leakscope_ledger::events::{self, Check, Descriptor, Event, asked};
use leakscope_ledger::reader::Module;
use leakscope_model::{CheckTrigger, ModuleId, Svma};
use leakscope_report::text::live::{Live as LiveText, OpenDescriptor};
use leakscope_report::valgrind_xml::live::{Live as LiveXml, Progress};
use leakscope_symbols::{ModuleFile, Symbolizer};

use super::addresses;
use super::options::Wishes;
use crate::flags::Format;
use crate::output::Outputs;
use crate::plan::View;
use crate::record;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What is known of a process so far.
pub(super) struct Process {
    collector: Collector,
    /// Of each target, how far its XML is.
    xml: Vec<Progress>,
    begun: Vec<bool>,
    shown: u64,
    hidden: u64,
    /// For each error by its number: whether it was shown. In their order, how often they happened.
    numbers: Vec<(u32, bool)>,
    /// Those that were written here and not by the parent, in order.
    written: Vec<u32>,
    counts: std::collections::HashMap<u32, u64>,
    /// Events up to the mark of a fork are the parent's.
    inherits: bool,
    finished: bool,
    /// Another program took the process over.
    replaced: bool,
    failure: Option<String>,
    wishes: Wishes,
    /// Functions of strings for which the engine stands in, by address.
    stood_in: Replaced,
    /// To the question that is the last event.
    answer: Option<Vec<(i64, i64)>>,
}

/// A module as the symbolizer knows it.
pub(super) fn module_file(module: &Module) -> ModuleFile {
    use std::os::unix::ffi::OsStringExt;
    ModuleFile {
        path: PathBuf::from(std::ffi::OsString::from_vec(module.path.clone())),
        build_id: (!module.build_id.is_empty()).then(|| module.build_id.clone()),
    }
}

/// Names of functions by run-time address.
type Replaced = std::collections::BTreeMap<u64, String>;

/// An engine's own accesses in a function lie so close behind its first byte.
const ACCESSES: u64 = 16;

/// Names for the addresses of stacks. A function that the engine stands in for has its name, and no line: none of its own
/// code ran.
fn resolve<'a>(
    symbolizer: &'a mut Symbolizer,
    replaced: &'a Replaced,
) -> impl FnMut(ModuleId, &Module, &[Svma]) -> Vec<Vec<ResolvedFrame>> + 'a {
    |_, module, addresses| {
        let file = module_file(module);
        let addresses: Vec<u64> = addresses.iter().map(|address| address.0).collect();
        let frames = symbolizer.resolve(&file, &addresses, &mut |_| {});
        let named = frames.into_iter().map(|frames| frames.into_iter().map(record::resolved).collect());
        let own = |address: u64| {
            let at = address.wrapping_add(module.load_bias);
            let (_, name) = replaced.range(..=at).next_back().filter(|(start, _)| at - *start < ACCESSES)?;
            Some(vec![ResolvedFrame { function: Some(name.clone()), ..ResolvedFrame::default() }])
        };
        named.zip(&addresses).map(|(frames, &address)| own(address).unwrap_or(frames)).collect()
    }
}

/// How pieces are built.
fn building(end: End) -> BuildOptions<'static> {
    BuildOptions { names: Names::All, hook_file_name: String::new(), end }
}

/// The leak check before this one, as far as this one tells of it.
fn before(check: &Check) -> Check {
    let mut check = check.clone();
    check.asked &= 0xf;
    check.records.retain(|record| record.old_blocks > 0);
    for record in &mut check.records {
        record.blocks = record.old_blocks;
        record.bytes = record.old_bytes;
        record.indirect_bytes = record.old_indirect_bytes;
    }
    check
}

impl Process {
    /// Nothing is known yet.
    pub(super) fn new(targets: usize, inherits: bool, wishes: Wishes) -> Self {
        Self {
            collector: Collector::default(),
            xml: vec![Progress::default(); targets],
            begun: vec![false; targets],
            shown: 0,
            hidden: 0,
            numbers: Vec::new(),
            written: Vec::new(),
            counts: std::collections::HashMap::new(),
            inherits,
            finished: false,
            replaced: false,
            failure: None,
            wishes,
            stood_in: Replaced::new(),
            answer: None,
        }
    }

    /// The answer to the last event, if it was a question.
    pub(super) fn take_answer(&mut self) -> Option<Vec<(i64, i64)>> {
        self.answer.take()
    }

    /// Errors that were shown, and that rules hid.
    pub(super) fn errors(&self) -> (u64, u64) {
        (self.shown, self.hidden)
    }

    /// Takes an event in, and writes what there is to write of it.
    pub(super) fn event(
        &mut self,
        event: &Event,
        view: &View,
        symbolizer: &mut Symbolizer,
        outputs: &mut Outputs,
    ) -> Result<()> {
        let named = self.named(event, symbolizer);
        let event = named.as_ref().unwrap_or(event);
        self.collector.add(event);
        if *event == Event::Forked {
            self.inherits = false;
        }
        // What the parent has told already is known, and counts, but is not told again.
        if self.inherits && !matches!(event, Event::Error(_) | Event::Counts(_) | Event::StringFunctions(_)) {
            return Ok(());
        }
        match event {
            Event::Error(error) => self.error(error.number, event, view, symbolizer, outputs),
            Event::Counts(counts) => {
                self.counts.extend(counts.iter().copied());
                Ok(())
            }
            Event::Check(check) => self.check(check, view, symbolizer, outputs),
            Event::Message { text, stack, by_program } => {
                let (analysis, stack) = self.stack(stack, view, symbolizer);
                let stack = stack.as_ref();
                self.write(
                    &analysis,
                    view,
                    outputs,
                    |live| live.message(text, *by_program, stack),
                    |xml| if *by_program { xml.message(text, stack) } else { Ok(()) },
                )
            }
            Event::FatalSignal { signal, code, address, stack } => {
                let (analysis, stack) = self.stack(stack, view, symbolizer);
                let stack = stack.as_ref();
                self.write(
                    &analysis,
                    view,
                    outputs,
                    |text| text.fatal_signal(*signal, *code, *address, stack),
                    |xml| xml.fatal_signal(*signal, *code, *address, stack),
                )
            }
            Event::StringFunctions(list) => {
                self.stood_in.extend(list.iter().map(|(name, address)| (*address, name.clone())));
                Ok(())
            }
            Event::Question(question) => {
                self.answer = Some(addresses::answer(question, &self.collector, symbolizer));
                Ok(())
            }
            Event::Descriptors(open) => self.descriptors(open, view, symbolizer, outputs),
            Event::Exec | Event::ExecFailed => {
                self.replaced = *event == Event::Exec;
                Ok(())
            }
            Event::Failed(text) => {
                self.failure = Some(text.clone());
                eprintln!("leakscope: {text}");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A new error: counted, and written unless a rule hides it.
    fn error(
        &mut self,
        number: u32,
        event: &Event,
        view: &View,
        symbolizer: &mut Symbolizer,
        outputs: &mut Outputs,
    ) -> Result<()> {
        let Some(part) =
            self.collector.of_event(event, &building(End::Running), &mut resolve(symbolizer, &self.stood_in))
        else {
            return Ok(());
        };
        let analysis = analyse(VERSION, &part, &view.options, &view.suppressions);
        let is_shown = analysis.shown_misuses().count() + analysis.shown_memory_errors().count() > 0;
        self.shown += u64::from(is_shown);
        self.hidden += u64::from(!is_shown);
        self.numbers.push((number, is_shown));
        if is_shown && !self.inherits {
            self.written.push(number);
            let (begin, end) = self.wishes.markers.clone();
            let marked = |text: &mut LiveText<'_>| {
                text.marker(&begin)?;
                text.errors(&analysis)?;
                text.marker(&end)
            };
            self.write(&analysis, view, outputs, marked, |xml| xml.errors(&analysis))?;
        }
        Ok(())
    }

    /// An error about an address that names tell more of than the engine could.
    fn named(&self, event: &Event, symbolizer: &mut Symbolizer) -> Option<Event> {
        let Event::Error(error) = event else { return None };
        let lines =
            addresses::describe(error.subject.as_ref()?, &self.collector, symbolizer, self.wishes.read_variables)?;
        Some(Event::Error(events::Error { auxiliary: lines, subject: None, ..error.clone() }))
    }

    /// A stack with names, and an analysis of the process without findings.
    fn stack(&self, stack: &[u64], view: &View, symbolizer: &mut Symbolizer) -> (Analysis, Option<Stack>) {
        let part = self.collector.of_stack(stack, &building(End::Running), &mut resolve(symbolizer, &self.stood_in));
        let mut analysis = analyse(VERSION, &part, &view.options, &leakscope_findings::Suppressions::new());
        let error = analysis.memory_errors.pop();
        (analysis, error.map(|error| error.stack).filter(|_| !stack.is_empty()))
    }

    fn descriptors(
        &mut self,
        open: &[Descriptor],
        view: &View,
        symbolizer: &mut Symbolizer,
        outputs: &mut Outputs,
    ) -> Result<()> {
        let (analysis, _) = self.stack(&[], view, symbolizer);
        let open: Vec<OpenDescriptor> = open
            .iter()
            .map(|descriptor| OpenDescriptor {
                number: descriptor.number,
                what: descriptor.what.clone(),
                target: String::from_utf8_lossy(&descriptor.target).into_owned(),
                stack: self.stack(&descriptor.stack, view, symbolizer).1,
            })
            .collect();
        let all = self.wishes.all_descriptors;
        self.write(&analysis, view, outputs, |text| text.descriptors(&open, all), |xml| xml.descriptors(&open, all))
    }

    /// A leak check: at the end, or on demand.
    fn check(&mut self, check: &Check, view: &View, symbolizer: &mut Symbolizer, outputs: &mut Outputs) -> Result<()> {
        let at_end = check.trigger != CheckTrigger::OnDemand;
        let how = check.asked & 0xf;
        let mut options = view.options.clone();
        match how {
            asked::FULL => options.leak_check = LeakCheck::Full,
            asked::SUMMARY => options.leak_check = LeakCheck::Summary,
            _ => {}
        }
        let analysis_of = |check: &Check, symbolizer: &mut Symbolizer| {
            let event = Event::Check(check.clone());
            let options_of = BuildOptions {
                names: Names::For(&options, &view.suppressions),
                hook_file_name: String::new(),
                end: if at_end { End::Exited(0) } else { End::Running },
            };
            let part = self.collector.of_event(&event, &options_of, &mut resolve(symbolizer, &self.stood_in));
            part.map(|part| analyse(VERSION, &part, &options, &view.suppressions))
        };
        let Some(mut analysis) = analysis_of(check, symbolizer) else { return Ok(()) };
        if check.asked & (asked::ADDED | asked::CHANGED) != 0 {
            let mut changed = check.clone();
            changed.records.retain(|record| {
                let (now, old) = ((record.blocks, record.bytes), (record.old_blocks, record.old_bytes));
                if check.asked & asked::ADDED != 0 { now.0 > old.0 || now.1 > old.1 } else { now != old }
            });
            if let Some(other) = analysis_of(&changed, symbolizer) {
                analysis.records = other.records;
            }
        }
        let is_delta = check.asked & (asked::ADDED | asked::CHANGED) != 0;
        let before = if is_delta { analysis_of(&before(check), symbolizer) } else { None };
        let errors = analysis.records.iter().filter(|record| record.is_error).count() as u64;
        self.shown += errors;
        if at_end && !self.finished {
            self.finished = true;
            self.write(&analysis, view, outputs, |text| text.heap(&analysis), |xml| xml.finished(&analysis))?;
        }
        let before = before.as_ref();
        self.write(&analysis, view, outputs, |text| text.leaks(&analysis, before), |xml| xml.leaks(&analysis, before))
    }

    /// The end: what is left to write, and the recording; `None` when nothing was recorded.
    pub(super) fn end(
        &mut self,
        end: End,
        view: &View,
        symbolizer: &mut Symbolizer,
        outputs: &mut Outputs,
    ) -> Result<Option<ProcessRecording>> {
        // A process that only turns into another program has nothing to say, as a rule.
        let is_silent = self.replaced && self.begun.iter().all(|begun| !begun);
        if self.collector.process().pid == 0 || is_silent {
            return Ok(None);
        }
        let end = if self.replaced { End::Exec } else { end };
        let recorded = self.collector.all(&building(end), &mut resolve(symbolizer, &self.stood_in));
        let mut analysis = analyse(VERSION, &recorded, &view.options, &view.suppressions);
        // Leak checks on demand count, too, as they were shown.
        let leaks = analysis.records.iter().filter(|record| record.is_error).count() as u64;
        let others = self.shown.saturating_sub(self.numbers.iter().filter(|(_, shown)| *shown).count() as u64);
        analysis.errors.errors += others.saturating_sub(leaks);
        analysis.errors.contexts += others.saturating_sub(leaks);
        if !self.finished {
            self.finished = true;
            self.write(&analysis, view, outputs, |text| text.heap(&analysis), |xml| xml.finished(&analysis))?;
        }
        let count = |number| self.counts.get(number).copied().unwrap_or(1);
        let counts: Vec<u64> = self.written.iter().map(count).collect();
        self.write(&analysis, view, outputs, |text| text.end(&analysis), |xml| xml.end(&analysis, &counts))?;
        for target in view.targets.iter().filter(|target| target.format == Format::Json) {
            let mut bytes = Vec::new();
            leakscope_report::json::write(&mut bytes, &analysis).context("rendering in memory")?;
            outputs.write(target, analysis.process.pid, &bytes)?;
        }
        Ok(Some(recorded))
    }

    /// Writes a piece to every target of these two formats; the first one with its head in front.
    fn write(
        &mut self,
        analysis: &Analysis,
        view: &View,
        outputs: &mut Outputs,
        text: impl Fn(&mut LiveText<'_>) -> std::io::Result<()>,
        xml: impl Fn(&mut LiveXml<'_>) -> std::io::Result<()>,
    ) -> Result<()> {
        let pid = analysis.process.pid;
        for (number, target) in view.targets.iter().enumerate() {
            let begins = !std::mem::replace(&mut self.begun[number], true);
            let mut bytes = Vec::new();
            let written = match target.format {
                Format::Text => {
                    let style = view.text_style(&target.destination);
                    let mut live = LiveText::new(&mut bytes, &style, pid);
                    let head = if begins { live.begin(analysis) } else { Ok(()) };
                    head.and_then(|()| text(&mut live))
                }
                Format::ValgrindXml => {
                    let mut live = LiveXml::new(&mut bytes, view.xml_style(), &mut self.xml[number]);
                    let head = if begins { live.begin(analysis) } else { Ok(()) };
                    head.and_then(|()| xml(&mut live))
                }
                _ => continue,
            };
            written.context("rendering in memory")?;
            outputs.append(target, pid, begins, &bytes)?;
        }
        Ok(())
    }
}
