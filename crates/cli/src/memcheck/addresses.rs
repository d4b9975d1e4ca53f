//! Names for the addresses that errors are about: variables, data symbols, sections, functions of frames.
//!
//! Source: Valgrind's `m_addrinfo.c` and `debuginfo.c`, for the order of questions and the words.

use leakscope_findings::recording::Collector;
use leakscope_ledger::events::{StackFrame, Subject};
use leakscope_ledger::reader::Module;
use leakscope_symbols::{FrameState, ModuleFile, Symbolizer, Variable};

use super::process::module_file;

/// Frames whose variables are looked at.
const MOST_FRAMES: usize = 8;

/// What names tell of an address: sentences with their stacks, instead of the engine's.
pub(super) fn describe(
    subject: &Subject,
    collector: &Collector,
    symbolizer: &mut Symbolizer,
    read_variables: bool,
) -> Option<Vec<(String, Vec<u64>)>> {
    let mut names = Names { subject, collector, symbolizer };
    if let Some(object) = subject.object {
        return names.passed(object);
    }
    if subject.thread == 0 {
        let (module, file) = names.module(subject.address)?;
        let address = subject.address.wrapping_sub(module.load_bias);
        let variable = read_variables.then(|| names.symbolizer.global_variable(&file, address)).flatten();
        return variable.map(|variable| global(subject, &variable)).or_else(|| names.data(&file, address));
    }
    let variable = if read_variables { names.local() } else { None };
    match variable {
        Some((variable, frame)) => Some(local(subject, &variable, frame)),
        None => names.frame(),
    }
}

/// The answer to a question of the engine about where variables lie.
pub(super) fn answer(subject: &Subject, collector: &Collector, symbolizer: &mut Symbolizer) -> Vec<(i64, i64)> {
    let names = Names { subject, collector, symbolizer };
    let Some(frame) = subject.frames.first() else {
        let Some((module, file)) = names.module(subject.address) else { return Vec::new() };
        let bias = module.load_bias;
        let extent = names.symbolizer.data_extent(&file, subject.address.wrapping_sub(bias));
        let moved = |address: u64| address.wrapping_add(bias) as i64;
        return extent.map(|(start, end)| (moved(start), moved(end))).into_iter().collect();
    };
    let Some((module, file)) = names.module(frame.pc) else { return Vec::new() };
    let pc = frame.pc.wrapping_sub(module.load_bias);
    names.symbolizer.frame_variables(&file, pc, state_of(frame), module.load_bias)
}

fn state_of(frame: &StackFrame) -> FrameState {
    FrameState { cfa: frame.cfa, frame_pointer: frame.frame_pointer, stack_pointer: frame.stack_pointer }
}

struct Names<'a> {
    subject: &'a Subject,
    collector: &'a Collector,
    symbolizer: &'a mut Symbolizer,
}

impl Names<'_> {
    fn module(&self, address: u64) -> Option<(Module, ModuleFile)> {
        let module = self.collector.module_at(address)?.clone();
        let file = module_file(&module);
        Some((module, file))
    }

    /// A symbol or a section that an address of link time lies in.
    fn data(&mut self, file: &ModuleFile, address: u64) -> Option<Vec<(String, Vec<u64>)>> {
        let at = self.subject.address;
        if let Some((name, offset)) = self.symbolizer.data_symbol(file, address) {
            return Some(plain([format!("Address {at:#x} is {offset} bytes inside data symbol \"{name}\"")]));
        }
        let segment = match self.symbolizer.section(file, address)?.as_str() {
            ".text" => "Text",
            ".data" | ".sdata" => "Data",
            ".bss" | ".sbss" => "BSS",
            ".plt" | ".plt.sec" => "PLT",
            ".got" => "GOT",
            ".got.plt" => "GOTPLT",
            _ => return None,
        };
        let text = format!("Address {at:#x} is in the {segment} segment of {}", file.path.display());
        // Of code one frame tells more.
        let stack = if segment == "Text" { vec![at.wrapping_add(1)] } else { Vec::new() };
        Some(vec![(text, stack)])
    }

    /// The variable that an access went past the end of.
    fn passed(&mut self, (start, end): (u64, u64)) -> Option<Vec<(String, Vec<u64>)>> {
        let (at, size) = (self.subject.address, end - start);
        let sentence =
            |what: &str, name: &str| format!("Address {at:#x} is 0 bytes after {what} \"{name}\" of size {size}");
        if self.subject.thread == 0 {
            let (module, file) = self.module(start)?;
            let address = start.wrapping_sub(module.load_bias);
            if let Some(variable) = self.symbolizer.global_variable(&file, address) {
                let first = sentence("global var", &variable.name);
                let lines = std::iter::once(first).chain(declared(&variable));
                return Some(lines.map(|line| (line, Vec::new())).collect());
            }
            let (name, _) = self.symbolizer.data_symbol(&file, address)?;
            return Some(plain([sentence("data symbol", &name)]));
        }
        let own = Subject { address: start, object: None, ..self.subject.clone() };
        let (variable, number) =
            Names { subject: &own, collector: self.collector, symbolizer: self.symbolizer }.local()?;
        let place = format!("in frame #{number} of thread {}", self.subject.thread);
        let second = declared(&variable).map_or_else(|| place.clone(), |words| format!("{words}, {place}"));
        Some(plain([sentence("local var", &variable.name), second]))
    }

    /// A local variable, and the number of its frame.
    fn local(&mut self) -> Option<(Variable, usize)> {
        let frames = self.subject.frames.iter().take(MOST_FRAMES).enumerate();
        frames.into_iter().find_map(|(number, frame)| {
            let (module, file) = self.module(frame.pc)?;
            let state = state_of(frame);
            let pc = frame.pc.wrapping_sub(module.load_bias);
            let mut find =
                |pc| self.symbolizer.local_variable(&file, pc, state, module.load_bias, self.subject.address);
            // Some compilers let a variable begin to exist behind the call that it is passed to.
            let behind = |find: &mut dyn FnMut(u64) -> Option<Variable>| if number > 0 { find(pc + 1) } else { None };
            find(pc).or_else(|| behind(&mut find)).map(|variable| (variable, number))
        })
    }

    /// The function whose frame holds the address.
    fn frame(&mut self) -> Option<Vec<(String, Vec<u64>)>> {
        let subject = self.subject;
        let first = format!("Address {:#x} is on thread {}'s stack", subject.address, subject.thread);
        let number = subject.frames.len().checked_sub(1).filter(|_| subject.is_within)?;
        let StackFrame { pc, .. } = subject.frames[number];
        let (module, file) = self.module(pc)?;
        let pc = pc.wrapping_sub(module.load_bias);
        let start = self.symbolizer.function_start(&file, pc);
        let found = self.symbolizer.resolve(&file, &[pc, start.unwrap_or(pc)], &mut |_| {});
        let (here, beginning) = (found.first()?.last()?, found.get(1).and_then(|frames| frames.last()));
        let line = beginning.filter(|_| start.is_some()).and_then(|frame| frame.line).filter(|_| here.file.is_some());
        let line = line.map(|line| line.to_string()).unwrap_or_default();
        let function = if here.function.is_empty() { "???" } else { &here.function };
        let source = here.file.as_deref().unwrap_or("???");
        Some(plain([first, format!("in frame #{number}, created by {function} ({source}:{line})")]))
    }
}

fn plain<const N: usize>(lines: [String; N]) -> Vec<(String, Vec<u64>)> {
    lines.into_iter().map(|line| (line, Vec::new())).collect()
}

/// `3 bytes`, `1 byte`.
fn bytes(count: u64) -> String {
    if count == 1 { "1 byte".to_owned() } else { format!("{count} bytes") }
}

fn declared(variable: &Variable) -> Option<String> {
    Some(format!("declared at {}:{}", variable.file.as_deref()?, variable.line?))
}

fn local(subject: &Subject, variable: &Variable, frame: usize) -> Vec<(String, Vec<u64>)> {
    let Variable { name, part, .. } = variable;
    let (at, thread) = (subject.address, subject.thread);
    let declared = declared(variable);
    let first = if part.is_empty() {
        let comma = if declared.is_some() { "" } else { "," };
        format!("Location {at:#x} is {} inside local var \"{name}\"{comma}", bytes(variable.offset))
    } else {
        let comma = if declared.is_some() { "," } else { "" };
        format!("Location {at:#x} is {} inside {name}{part}{comma}", bytes(variable.offset_in_part))
    };
    let place = format!("in frame #{frame} of thread {thread}");
    plain([first, declared.map_or_else(|| place.clone(), |declared| format!("{declared}, {place}"))])
}

fn global(subject: &Subject, variable: &Variable) -> Vec<(String, Vec<u64>)> {
    let Variable { name, part, .. } = variable;
    let at = subject.address;
    let declared = declared(variable);
    if part.is_empty() {
        let first = format!("Location {at:#x} is {} inside global var \"{name}\"", bytes(variable.offset));
        return match declared {
            Some(declared) => plain([first, declared]),
            None => plain([first]),
        };
    }
    let first = format!("Location {at:#x} is {} inside {name}{part},", bytes(variable.offset_in_part));
    let second = declared.map_or_else(|| "a global variable".to_owned(), |words| format!("a global variable {words}"));
    plain([first, second])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(part: &str, declared: bool) -> Variable {
        Variable {
            name: "table".into(),
            part: part.into(),
            offset_in_part: 1,
            offset: 13,
            file: declared.then(|| "x.c".into()),
            line: Some(7),
            extent: (0, 64),
        }
    }

    /// The words of Memcheck 3.19 for each case, from the comments on its `format_message`.
    #[test]
    fn words_by_table() {
        let subject = Subject { address: 0x7f_0000, thread: 2, ..Subject::default() };
        let words = |lines: Vec<(String, Vec<u64>)>| lines.into_iter().map(|line| line.0).collect::<Vec<_>>();
        let cases = [
            (
                "",
                true,
                "Location 0x7f0000 is 13 bytes inside local var \"table\"",
                "declared at x.c:7, in frame #1 of thread 2",
            ),
            ("", false, "Location 0x7f0000 is 13 bytes inside local var \"table\",", "in frame #1 of thread 2"),
            (
                "[3].c",
                true,
                "Location 0x7f0000 is 1 byte inside table[3].c,",
                "declared at x.c:7, in frame #1 of thread 2",
            ),
            ("[3].c", false, "Location 0x7f0000 is 1 byte inside table[3].c", "in frame #1 of thread 2"),
        ];
        for (part, is_declared, first, second) in cases {
            assert_eq!(words(local(&subject, &variable(part, is_declared), 1)), [first, second]);
        }
        assert_eq!(
            words(global(&subject, &variable("", true))),
            ["Location 0x7f0000 is 13 bytes inside global var \"table\"", "declared at x.c:7"]
        );
        assert_eq!(
            words(global(&subject, &variable("[3]", true))),
            ["Location 0x7f0000 is 1 byte inside table[3],", "a global variable declared at x.c:7"]
        );
        assert_eq!(words(global(&subject, &variable("[3]", false)))[1], "a global variable");
    }
}
